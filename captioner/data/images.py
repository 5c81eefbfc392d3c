"""Open an image from any kind of source as upright RGB: every image enters here."""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from captioner.errors import DataError

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = (
    "str | PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image "
    "| npt.NDArray[np.generic] | torch.Tensor"
)

MAX_PIXELS = 120_000_000  # the largest cameras; decoded to RGB this takes 360 MB
MAX_BYTES = 500_000_000  # of a file object or a pipe, whose size is not known in advance

# Pillow reads more, but an untrusted image must not reach, for example, Ghostscript through EPS.
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
# File suffixes by format; HEIF is read by pillow-heif, which is imported when it is needed.
SUFFIXES = frozenset(
    {
        ".avif", ".avifs",
        ".bmp", ".gif", ".ico", ".webp",
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo",
        ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
        ".png", ".apng",
        ".pbm", ".pgm", ".ppm", ".pnm", ".pfm",
        ".tif", ".tiff",
        ".heic", ".heics", ".heif", ".heifs", ".hif",
    }
)  # fmt: skip
_HEIF_BRANDS = tuple(
    b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()
)  # in a file's first box

# The transposition that turns an image upright, by the value of its EXIF tag Orientation.
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
_BITS_PER_SAMPLE = 258  # a tag of TIFF


def open_image(source: ImageSource) -> Image.Image:
    """Return an image as upright RGB.

    Accepts a path, also of a pipe, encoded bytes, a binary file object, a PIL image, an array
    (H, W), (H, W, 3) or (H, W, 4), or a tensor, whose channels may also come first, as in torch.
    EXIF rotation is applied, transparent parts become white, and an animation is represented by its
    first frame.

    The type decides the value of white, never the values: 1 for floats, 65535 for uint16, 255 for
    all other integers, and for files the maximum of their bit depth. Values outside this range are
    refused; floats may overshoot a little, as after resizing, and are clipped.

    Raises DataError if the source is not an image, is damaged, or declares over MAX_PIXELS pixels.
    """
    name = _name(source)
    try:
        with warnings.catch_warnings():
            # About many pixels (our own bound is stricter) and strange metadata (it is not used).
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                rgb = _to_rgb(source, name)
                return rgb.copy() if rgb is source else rgb  # the caller may close its own
            array = _array(source)
            if array is not None:
                return _to_rgb(Image.fromarray(_to_uint8(array, name)), name)
            with _open(source, name) as image:
                return _to_rgb(image, name)
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders raise almost anything for damaged files: OSError, SyntaxError,
        # ValueError, struct.error, RuntimeError ...
        raise DataError(_reason(error, name)) from error


def _reason(error: Exception, name: str) -> str:
    """Return why an image cannot be read."""
    if isinstance(error, FileNotFoundError):
        hint = "; it is a URL: download the image and give its file" if "://" in name else ""
        return f"no image at {name}{hint}"
    if isinstance(error, IsADirectoryError):
        return f"{name}: it is a folder; give an image file"
    if isinstance(error, PermissionError):
        return f"{name}: permission denied; make it readable"
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(name)
    if isinstance(error, UnidentifiedImageError):
        return f"{name}: it is not an image in a known format; give a JPEG, PNG or WebP file"
    return f"{name}: it cannot be read: {getattr(error, 'strerror', None) or error}"


def _name(source: Any) -> str:
    """Return the name of an image in an error: its path if it has one."""
    if not isinstance(source, str | PathLike):
        source = getattr(source, "name", None)  # of a file object
    return os.fsdecode(source) if isinstance(source, str | PathLike) else "the image"


def _array(source: Any) -> npt.NDArray[np.generic] | None:
    """Return an array or a tensor as (H, W) or (H, W, C), and None for everything else."""
    if isinstance(source, np.ndarray):
        return source
    torch = sys.modules.get("torch")  # whoever gives a tensor has imported it
    if torch is None or not isinstance(source, torch.Tensor):
        return np.asarray(source) if hasattr(source, "__array__") else None
    tensor = source.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    array: npt.NDArray[np.generic] = tensor.numpy()
    return array


def _open(source: Any, name: str) -> Image.Image:
    """Open an encoded image; its pixels are decoded later."""
    stream: io.BytesIO | Path
    if isinstance(source, bytes | bytearray | memoryview):
        stream = io.BytesIO(source)
    elif isinstance(source, io.TextIOBase):
        raise DataError(f'{name}: it is open as text; open it with mode "rb"')
    elif hasattr(source, "read"):
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)  # as Pillow does: a file that was just written is at its end
        stream = _content(source, name)
    elif isinstance(source, str | PathLike):
        stream = Path(os.fsdecode(source))
        mode = stream.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe
            with stream.open("rb") as pipe:
                stream = _content(pipe, name)
    else:
        raise DataError(
            f"{type(source).__name__}: it is not a type of image; give a path, bytes, a file "
            "object, a PIL image, an array or a tensor"
        )
    if (stream.stat().st_size if isinstance(stream, Path) else len(stream.getbuffer())) == 0:
        raise DataError(f"{name}: it is empty (0 bytes)")
    Image.init()  # fills Image.OPEN; an older Pillow lacks AVIF
    try:
        return Image.open(stream, formats=[format for format in FORMATS if format in Image.OPEN])
    except UnidentifiedImageError:
        if not _is_heif(stream):
            raise
    _register_heif(name)
    return Image.open(stream, formats=["HEIF"])


def _content(stream: IO[bytes], name: str) -> io.BytesIO:
    content = stream.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        kind = type(content).__name__
        raise DataError(f"{name}: its read() returns {kind}; give a file object of bytes")
    if len(content) > MAX_BYTES:
        raise DataError(f"{name}: it has more than {MAX_BYTES // 10**6} MB; shrink it")
    return io.BytesIO(content)


def _is_heif(stream: io.BytesIO | Path) -> bool:
    if isinstance(stream, Path):
        with stream.open("rb") as file:
            head = file.read(64)
    else:
        head = bytes(stream.getbuffer()[:64])
    return head[4:8] == b"ftyp" and any(brand in head[8:] for brand in _HEIF_BRANDS)


def _register_heif(name: str) -> None:
    if "HEIF" in Image.OPEN:
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise DataError(
            f"{name}: HEIC images need pillow-heif, which is missing; pip install pillow-heif"
        ) from None
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _too_large(name: str, size: tuple[int, int] | None = None) -> str:
    declared = f"{size[0]} x {size[1]}" if size else "a size"
    most = MAX_PIXELS // 10**6
    return f"{name}: it declares {declared} of more than {most} million pixels; shrink it"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(name, image.size))
    if image.width == 0 or image.height == 0:
        raise DataError(f"{name}: it has no pixels")
    image.load()
    white = _white(image)
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        kind = f"mode {image.mode}"
        image = Image.fromarray(_scaled(np.asarray(image), white, kind, name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, if the EXIF data is damaged."""
    try:
        # ImageOps.exif_transpose would also rewrite the EXIF data and fail if it is damaged.
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _white(image: Image.Image) -> float:
    """Return the value of white in a grey image of mode I;16, I or F, by its file format."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]  # 12 in some TIFFs
        return float(2**bits - 1)
    if image.mode == "I":
        return 65535.0 if image.format in ("PNG", "PPM") else 255.0
    # Float files hold 0 to 1. Pillow's own mode F, the result of a conversion, holds 0 to 255.
    return 1.0 if image.format in ("TIFF", "PPM") else 255.0


def _to_uint8(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; move the channels to the end"
        elif array.ndim == 4:
            hint = "; give one image at a time"
        raise DataError(
            f"{name}: its shape is {array.shape}, not (H, W), (H, W, 3) or (H, W, 4){hint}"
        )
    if array.size == 0:
        raise DataError(f"{name}: it has no pixels")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        wanted = "give uint8, uint16 or float in 0 to 1"
        raise DataError(f"{name}: its type is {array.dtype}; {wanted}")
    white = 1.0 if array.dtype.kind == "f" else 65535.0 if array.dtype == np.uint16 else 255.0
    return _scaled(array, white, str(array.dtype), name)


def _scaled(array: npt.NDArray[Any], white: float, kind: str, name: str) -> npt.NDArray[np.uint8]:
    """Scale values of 0 to `white` to 0 to 255; raises DataError if they are on another scale."""
    values = np.nan_to_num(array.astype(np.float32), posinf=np.inf, neginf=-np.inf)
    least, most = float(values.min()), float(values.max())
    slack = white / 2 if array.dtype.kind == "f" else 0.0
    # A nearly black image: it was in 0 to 1 and was made into Pillow's mode F without scaling.
    too_dark = kind == "mode F" and white == 255 and 0 < most <= 1
    if least < -slack or most > white + slack or too_dark:
        raise DataError(
            f"{name}: its values go from {least:g} to {most:g}, but {kind} is read as 0 to "
            f"{white:g}; scale them to that range"
        )
    return (values * (255 / white)).clip(0, 255).round().astype(np.uint8)
