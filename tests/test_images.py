"""Whatever is handed in becomes an upright RGB picture, or a DataError that says why not."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioner.errors import DataError
from captioner.images import MAX_PIXELS, open_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def assert_close(found: object, expected: tuple[int, ...], within: int = 6) -> None:
    assert np.abs(np.subtract(found, expected)).max() <= within, f"{found} is not {expected}"


@pytest.fixture
def photo() -> Image.Image:
    """40 x 30, red above blue."""
    image = Image.new("RGB", (40, 30), BLUE)
    image.paste(RED, (0, 0, 40, 15))
    return image


# --- good pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_picture_of_each_common_format_is_read_from_a_file(tmp_path, photo, kind):
    path = tmp_path / "photo"  # the name does not matter, the content does
    path.write_bytes(encoded(photo, kind))
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert_close(image.getpixel((20, 3)), RED)
    assert_close(image.getpixel((20, 26)), BLUE)


def test_a_path_a_string_bytes_an_image_and_an_array_give_the_same_picture(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    for source in (path, str(path), path.read_bytes(), photo, np.asarray(photo)):
        assert open_image(source).tobytes() == photo.tobytes()


def test_a_cmyk_jpeg_is_read_in_its_colours(photo):
    image = open_image(encoded(photo.convert("CMYK"), "JPEG"))
    assert image.mode == "RGB"
    assert_close(image.getpixel((20, 3)), RED)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_eight_bits(kind):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = open_image(encoded(Image.fromarray(ramp), kind))
    assert_close(image.getpixel((7, 7)), WHITE, 0)
    assert_close(image.getpixel((0, 0)), (0, 0, 0), 0)
    assert_close(image.getpixel((0, 4)), (130,) * 3, 1)


def test_a_big_endian_sixteen_bit_tiff_is_read(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=">u2").reshape(8, 8)
    image = open_image(encoded(Image.frombytes("I;16B", (8, 8), ramp.tobytes()), "TIFF"))
    assert_close(image.getpixel((7, 7)), WHITE, 0)


@pytest.mark.parametrize("mode", ["L", "1", "F", "I"])
def test_grey_pictures_become_rgb(mode):
    image = open_image(Image.new("L", (5, 4), 255).convert(mode))
    assert (image.mode, image.getpixel((2, 2))) == ("RGB", WHITE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_on_white(mode):
    clear = Image.new("RGBA", (6, 6), (0, 0, 0, 0)).convert(mode)
    assert open_image(encoded(clear, "PNG")).getpixel((3, 3)) == WHITE


def test_a_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (6, 6), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 1)
    for kind in ("PNG", "GIF"):
        opened = open_image(encoded(image, kind, transparency=0))
        assert opened.getpixel((3, 3)) == WHITE
        assert opened.getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert_close(open_image(moving).getpixel((8, 8)), RED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_turned_by_exif_is_brought_upright(photo, orientation, kind):
    photo.paste((0, 255, 0), (0, 0, 20, 15))  # no two orientations look alike
    turned = {
        1: [], 2: ["FLIP_LEFT_RIGHT"], 3: ["ROTATE_180"], 4: ["FLIP_TOP_BOTTOM"],
        5: ["TRANSPOSE"], 6: ["ROTATE_90"], 7: ["TRANSVERSE"], 8: ["ROTATE_270"],
    }[orientation]  # fmt: skip
    stored = photo
    for step in turned:
        stored = stored.transpose(getattr(Image.Transpose, step))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(stored, kind, exif=exif))
    assert image.size == photo.size
    for place in ((5, 5), (35, 5), (5, 25)):
        assert_close(image.getpixel(place), photo.getpixel(place), 12)


def test_damaged_exif_data_does_not_cost_the_picture(photo):
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x0131] = "a name that is longer than four bytes"
    whole = encoded(photo, "JPEG", exif=exif)
    begin = whole.index(b"Exif")
    for place in range(begin + 6, begin + 60):
        for value in (0, 7, 255):
            damaged = bytearray(whole)
            damaged[place] = value
            assert sorted(open_image(bytes(damaged)).size) == [30, 40]  # perhaps turned


def test_a_picture_of_one_pixel_is_read():
    assert open_image(encoded(Image.new("RGB", (1, 1), RED), "PNG")).getpixel((0, 0)) == RED


def test_an_embedded_profile_does_no_harm(photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(photo, "JPEG", icc_profile=profile)).size == photo.size


def test_no_file_is_left_open(tmp_path, photo):
    """An animation keeps its file open for the next frame unless somebody closes it."""
    path = tmp_path / "moving.gif"
    photo.save(path, save_all=True, append_images=[photo.rotate(90)])
    script = "import sys; from captioner.images import open_image; open_image(sys.argv[1])"
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "default::ResourceWarning", "-c", script, path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "unclosed file" not in ran.stderr


# --- arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 5, 3), 255, np.uint8),
        np.full((4, 5, 4), 255, np.uint8),
        np.full((4, 5), 255, np.uint8),
        np.full((4, 5, 1), 255, np.uint8),
        np.full((4, 5, 3), 65535, np.uint16),
        np.full((4, 5, 3), 1.0),
        np.full((4, 5, 3), 255.0, np.float32),
        np.full((4, 5), True),
        np.full((5, 4, 3), 255, np.uint8).transpose(1, 0, 2),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_array_becomes_a_picture(array):
    image = open_image(array)
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), WHITE)


def test_numbers_that_are_none_become_black():
    assert open_image(np.full((3, 3), np.nan)).getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8,), (2, 8, 8, 3), (0, 8, 3), (8, 8, 2)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(DataError, match=r"shape|no pixels"):
        open_image(np.zeros(shape, np.uint8))


# --- what is not a picture -------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no picture at .*nowhere\.jpg"):
        open_image(tmp_path / "nowhere.jpg")


def test_a_folder_is_not_a_picture(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        open_image(tmp_path)


def test_an_empty_file_is_reported_as_such(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg is empty"):
        open_image(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match="is empty"):
        open_image(b"")


@pytest.mark.parametrize("content", [b"hello", b"\xff\xd8\xff", b"\0" * 1000, b"<svg></svg>"])
def test_what_is_not_a_picture_is_refused(content):
    with pytest.raises(DataError, match=r"not a picture|cannot be read"):
        open_image(content)


def test_a_format_that_runs_other_programs_is_refused(photo):
    with pytest.raises(DataError, match="not a picture in a known format"):
        open_image(encoded(photo, "EPS"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    with pytest.raises(DataError):
        open_image(whole[: len(whole) // 2])


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_declares_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, size):
    assert size[0] * size[1] > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(DataError, match=r"bomb\.png declares .* more than 120 million pixels"):
        open_image(path)


def test_an_image_object_that_declares_too_many_pixels_is_refused():
    with pytest.warns(Image.DecompressionBombWarning):
        lazy = Image.open(io.BytesIO(png_header(13_000, 10_000)))
    with pytest.raises(DataError, match="13000 x 10000"):
        open_image(lazy)


@pytest.mark.parametrize("path", ["a\0b.jpg", "x" * 5000 + ".jpg"])
def test_an_impossible_path_is_refused(path):
    with pytest.raises(DataError):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_random_damage_raises_nothing_but_data_errors(kind):
    rng = np.random.default_rng(1)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)), kind)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 8)):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(DataError):
            assert open_image(bytes(damaged)).mode == "RGB"


def test_a_text_file_named_jpg_is_refused_with_its_name(tmp_path):
    path = Path(tmp_path, "notes.jpg")
    path.write_text("not a picture")
    with pytest.raises(DataError, match=r"notes\.jpg is not a picture"):
        open_image(path)
