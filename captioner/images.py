"""Turn anything a person may hand in into an upright RGB picture: the one gate for pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from captioner.errors import DataError

ImageSource: TypeAlias = "str | PathLike[str] | bytes | Image.Image | npt.NDArray[np.generic]"

MAX_PIXELS = 120_000_000  # the largest cameras; a decoded RGB picture of this size takes 360 MB
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

# Pillow knows more, but a picture of unknown origin must not reach, say, Ghostscript through EPS.
FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)

# What brings a picture upright, by the value of its EXIF tag Orientation.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def open_image(source: ImageSource) -> Image.Image:
    """Read a picture as upright RGB.

    Accepts a path, encoded bytes, a PIL image or an array (H, W), (H, W, 3) or (H, W, 4) of uint8,
    uint16 or floats in 0..1. EXIF rotation is applied, transparency is laid on white, 16-bit grey
    is scaled to 8 bits, and of an animation the first frame is taken.

    Raises DataError if the source is not a picture, is damaged, or declares over MAX_PIXELS pixels.
    """
    name = str(source) if isinstance(source, str | PathLike) else "the picture"
    try:
        with warnings.catch_warnings():
            # Of many pixels (our own bound is stricter) and of odd metadata (they do not matter).
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                rgb = _to_rgb(source, name)
                return rgb.copy() if rgb is source else rgb  # theirs may be closed or drawn upon
            if isinstance(source, np.ndarray):
                return _to_rgb(Image.fromarray(_to_uint8(source, name)), name)
            with _open(source, name) as image:
                return _to_rgb(image, name)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no picture at {name}") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a folder, not a picture") from None
    except PermissionError:
        raise DataError(f"{name} may not be read: check its permissions") from None
    except Image.DecompressionBombError:
        raise DataError(_too_large(name)) from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not a picture in a known format") from None
    except Exception as error:
        # Pillow's decoders raise nearly anything for damaged files: OSError, SyntaxError,
        # ValueError, struct.error, RuntimeError ...
        raise DataError(f"{name} cannot be read: {error}") from error


def _open(source: str | PathLike[str] | bytes, name: str) -> Image.Image:
    """Read the header only; the pixels follow when they are asked for."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    empty = not source if isinstance(stream, io.BytesIO) else stream.stat().st_size == 0
    if empty:
        raise DataError(f"{name} is empty (0 bytes)")
    Image.init()  # fills Image.OPEN; an older Pillow lacks AVIF
    return Image.open(stream, formats=[format for format in FORMATS if format in Image.OPEN])


def _too_large(name: str, size: tuple[int, int] | None = None) -> str:
    declared = f"{size[0]} x {size[1]}" if size else "a size"
    most = MAX_PIXELS // 10**6
    return f"{name} declares {declared} of more than {most} million pixels; shrink it"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(name, image.size))
    if image.width == 0 or image.height == 0:
        raise DataError(f"{name} has no pixels")
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_uint8(np.asarray(image), name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where the EXIF data is damaged."""
    try:
        # ImageOps.exif_transpose would also write the EXIF data anew, and fail on odd ones.
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _to_uint8(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(f"{name} has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    if array.size == 0:
        raise DataError(f"{name} has no pixels")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    values = np.nan_to_num(array.astype(np.float32))
    if np.issubdtype(array.dtype, np.floating):
        scale = 255.0 if values.max() <= 1.0 else 1.0
    else:
        scale = 1.0 if values.max() <= 255 else 255 / 65535
    return (values * scale).clip(0, 255).round().astype(np.uint8)


def find_pictures(sources: Sequence[str | Path], recursive: bool = False) -> list[Path]:
    """Picture files among `sources` and in the folders among them, folders in order of name.

    Raises DataError for a path that does not exist. A file that is named is taken as it is; of a
    folder only files with a picture's suffix.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = source.rglob("*") if recursive else source.iterdir()
            found += sorted(p for p in inside if p.suffix.lower() in SUFFIXES and p.is_file())
        elif source.exists():
            found.append(source)
        else:
            raise DataError(f"no picture or folder at {source}")
    return found
