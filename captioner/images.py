"""Turn anything a person may hand in into an upright RGB picture: the one gate for pictures."""

from __future__ import annotations

import io
import warnings
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from captioner.errors import DataError

ImageSource: TypeAlias = "str | PathLike[str] | bytes | Image.Image | npt.NDArray[np.generic]"

MAX_PIXELS = 120_000_000  # the largest cameras; a decoded RGB picture of this size takes 360 MB
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


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
            # Our own bound below is stricter than Pillow's warning and says what to do.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _to_rgb(_decode(source, name), name)
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
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        # What Pillow raises for damaged files of its many formats.
        raise DataError(f"{name} is damaged and cannot be read: {error}") from None


def _decode(source: ImageSource, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return Image.fromarray(_to_uint8(source, name))
    if isinstance(source, bytes):
        stream: io.BytesIO | Path = io.BytesIO(source)
        empty = not source
    else:
        stream = Path(source)
        empty = stream.stat().st_size == 0
    if empty:
        raise DataError(f"{name} is empty (0 bytes)")
    image = Image.open(stream)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(_too_large(name, image.size))
    image.load()  # a file handle is not kept
    return image


def _too_large(name: str, size: tuple[int, int] | None = None) -> str:
    declared = f"{size[0]} x {size[1]}" if size else "a size"
    return f"{name} declares {declared} of more than {MAX_PIXELS // 10**6} million pixels; shrink it"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise DataError(f"{name} has no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_uint8(np.asarray(image), name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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
