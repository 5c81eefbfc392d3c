"""Every source becomes an upright RGB image or a DataError that says why not."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from captioner.data.collect import find_images
from captioner.data.images import FORMATS, MAX_PIXELS, SUFFIXES, open_image
from captioner.errors import DataError

register_heif_opener()  # to write such files

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


def twelve_bit_tiff(value: int) -> bytes:
    """Two grey pixels of twelve bits, packed."""
    pixels = ((value << 12) | value).to_bytes(3, "big")
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
            (279, 3)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in tags)
    return (
        struct.pack("<2sHI", b"II", 42, 12) + pixels + b"\0" + struct.pack("<H", len(tags))
        + entries + bytes(4)
    )  # fmt: skip


def assert_close(found: object, expected: tuple[int, ...], within: int = 6) -> None:
    assert np.abs(np.subtract(found, expected)).max() <= within, f"{found} is not {expected}"


@pytest.fixture
def photo() -> Image.Image:
    """40 x 30, red above blue."""
    image = Image.new("RGB", (40, 30), BLUE)
    image.paste(RED, (0, 0, 40, 15))
    return image


# --- valid images ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "HEIF"],
)
def test_an_image_of_each_common_format_is_read_from_a_file(tmp_path, photo, kind):
    path = tmp_path / "photo"  # the name does not matter, the content does
    path.write_bytes(encoded(photo, kind))
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert_close(image.getpixel((20, 3)), RED)
    assert_close(image.getpixel((20, 26)), BLUE)


def test_a_path_a_string_bytes_a_pil_image_and_an_array_give_the_same_image(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    for source in (path, str(path), path.read_bytes(), photo, np.asarray(photo)):
        assert open_image(source).tobytes() == photo.tobytes()


def test_file_objects_and_byte_buffers_give_the_same_image(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    content = path.read_bytes()
    just_written = io.BytesIO()
    photo.save(just_written, "PNG")  # stands at its end
    with path.open("rb") as file:
        for source in (bytearray(content), memoryview(content), just_written, file):
            assert open_image(source).tobytes() == photo.tobytes()


def test_tensors_with_channels_first_or_last_give_the_same_image(photo):
    last = torch.from_numpy(np.array(photo))
    first = last.permute(2, 0, 1)
    for tensor in (last, first, first.long(), first / 255, (first / 255).requires_grad_()):
        assert open_image(tensor).tobytes() == photo.tobytes()
    assert open_image((first / 255).bfloat16()).tobytes() == photo.tobytes()  # 0 and 1 only
    assert open_image(first[:1]).getpixel((20, 3)) == WHITE  # the red channel as grey


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_read(tmp_path, photo):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encoded(photo, "PNG"),), daemon=True)
    writer.start()
    assert open_image(pipe).tobytes() == photo.tobytes()
    writer.join(10)


@pytest.mark.parametrize("source", [None, 7, ["photo.jpg"], {"path": "photo.jpg"}])
def test_another_type_is_refused_with_the_accepted_types(source):
    with pytest.raises(DataError, match=r"it is not a type of image; give a path, bytes"):
        open_image(source)


def test_a_file_that_is_open_as_text_is_refused(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    with (
        path.open() as file,
        pytest.raises(DataError, match=r'png: it is open as text; .*"rb"'),
    ):
        open_image(file)


def test_a_url_is_not_reported_as_a_missing_file():
    with pytest.raises(DataError, match="it is a URL: download the image"):
        open_image("https://example.org/photo.jpg")


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


@pytest.mark.parametrize("most", [255, 256, 4095])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000", "object"])
def test_white_is_decided_by_the_file_format_and_not_by_the_brightest_pixel(kind, most):
    """Sixteen bits: 255, 256 and 4095 are nearly black."""
    ramp = np.linspace(0, most, 64, dtype=np.uint16).reshape(8, 8)
    image = Image.fromarray(ramp)
    if kind == "PPM":
        source = b"P5 8 8 65535\n" + ramp.astype(">u2").tobytes()
    else:
        source = image if kind == "object" else encoded(image, kind)
    assert_close(open_image(source).getpixel((7, 7)), (most * 255 / 65535,) * 3, 1)


def test_a_twelve_bit_tiff_is_scaled_by_its_twelve_bits():
    assert open_image(twelve_bit_tiff(4095)).getpixel((0, 0)) == WHITE
    assert_close(open_image(twelve_bit_tiff(1024)).getpixel((0, 0)), (64,) * 3, 1)


@pytest.mark.parametrize(("value", "grey"), [(0.5, 128), (1.0, 255), (1.01, 255), (0.0, 0)])
def test_floats_are_zero_to_one_in_arrays_and_files(value, grey):
    array = np.full((4, 5), value, np.float32)
    tiff = io.BytesIO()
    Image.fromarray(array).save(tiff, "TIFF")
    for source in (array, array.astype(np.float64), tiff):
        assert open_image(source).getpixel((2, 2)) == (grey,) * 3


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (np.full((4, 5, 3), 255.0, np.float32), "255 to 255, but float32 is read as 0 to 1"),
        (np.full((4, 5, 3), -2.1), "-2.1 to -2.1, but float64 is read as 0 to 1"),
        (np.full((4, 5, 3), np.inf), "inf to inf, but float64"),
        (np.full((4, 5, 3), 256), "256 to 256, but int64 is read as 0 to 255"),
        (np.full((4, 5), -1, np.int16), "-1 to -1, but int16"),
        (Image.fromarray(np.full((4, 5), 1.0, np.float32)), "but mode F is read as 0 to 255"),
        (Image.fromarray(np.full((4, 5), 70000, np.int32)), "but mode I is read as 0 to 255"),
    ],
)  # fmt: skip
def test_values_on_another_scale_are_refused_and_not_guessed(source, found):
    with pytest.raises(DataError, match=re.escape(found) + r".*; scale them to that range"):
        open_image(source)


@pytest.mark.parametrize("mode", ["L", "1", "F", "I"])
def test_grey_images_become_rgb(mode):
    image = open_image(Image.new("L", (5, 4), 255).convert(mode))
    assert (image.mode, image.getpixel((2, 2))) == ("RGB", WHITE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(mode):
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_rotated_by_exif_is_turned_upright(photo, orientation, kind):
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
    image = open_image(encoded(stored, kind, exif=exif.tobytes()))
    assert image.size == photo.size
    for place in ((5, 5), (35, 5), (5, 25)):
        assert_close(image.getpixel(place), photo.getpixel(place), 12)


def test_an_image_with_damaged_exif_data_is_read(photo):
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


def test_an_image_of_one_pixel_is_read():
    assert open_image(encoded(Image.new("RGB", (1, 1), RED), "PNG")).getpixel((0, 0)) == RED


def test_an_image_with_an_embedded_profile_is_read(photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(photo, "JPEG", icc_profile=profile)).size == photo.size


def test_no_file_is_left_open(tmp_path, photo):
    """An animation keeps its file open for the next frame unless somebody closes it."""
    path = tmp_path / "moving.gif"
    photo.save(path, save_all=True, append_images=[photo.rotate(90)])
    script = "import sys; from captioner.data.images import open_image; open_image(sys.argv[1])"
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
        np.full((4, 5, 3), 255, np.int64),
        np.full((4, 5), True),
        np.full((5, 4, 3), 255, np.uint8).transpose(1, 0, 2),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_array_becomes_an_image(array):
    image = open_image(array)
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), WHITE)


def test_nan_becomes_black():
    assert open_image(np.full((3, 3), np.nan)).getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8,), (2, 8, 8, 3), (0, 8, 3), (8, 8, 2)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(DataError, match=r"shape|no pixels"):
        open_image(np.zeros(shape, np.uint8))


# --- what is not an image --------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no image at .*nowhere\.jpg"):
        open_image(tmp_path / "nowhere.jpg")


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        open_image(tmp_path)


def test_an_empty_file_is_reported_as_such(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg: it is empty"):
        open_image(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match="is empty"):
        open_image(b"")


@pytest.mark.parametrize("content", [b"hello", b"\xff\xd8\xff", b"\0" * 1000, b"<svg></svg>"])
def test_what_is_not_an_image_is_refused(content):
    with pytest.raises(DataError, match=r"not an image|cannot be read"):
        open_image(content)


def test_a_format_that_runs_other_programs_is_refused(photo):
    with pytest.raises(DataError, match="not an image in a known format"):
        open_image(encoded(photo, "EPS"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "HEIF"])
def test_a_truncated_image_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    with pytest.raises(DataError):
        open_image(whole[: len(whole) // 2])


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_declares_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, size):
    assert size[0] * size[1] > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(DataError, match=r"bomb\.png: it declares .* more than 120 million pixels"):
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "HEIF"])
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
    path.write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.jpg: it is not an image"):
        open_image(path)


# --- images in folders -----------------------------------------------------------------------


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.images]


def test_every_suffix_of_a_format_that_can_be_read_counts_as_an_image():
    Image.init()
    known = {suffix for suffix, kind in Image.EXTENSION.items() if kind in {*FORMATS, "HEIF"}}
    assert known <= SUFFIXES


def test_a_folder_yields_its_images_and_reports_what_was_left_out(tmp_path):
    images = ["a.JPG", "b.avif", "c.jp2", "d.jfif", "e.jpe", "f.mpo", "g.heic"]
    for name in [*images, "notes.txt", "more.txt", "README", "._a.jpg", ".DS_Store"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = find_images([tmp_path])
    assert names(found, tmp_path) == images
    assert found.problems == []
    assert found.skipped == {".txt": 2, "without a suffix": 1, "hidden": 1, "broken links": 1}
    assert found.summary().startswith("skipped 5 files: 2 .txt, 1 ")
    assert found.summary().endswith("; subfolders not searched: 1; give --recursive")


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    inside, outside = tmp_path / "album", tmp_path / "elsewhere"
    for folder in (inside / "deep", outside):
        folder.mkdir(parents=True)
        (folder / "x.jpg").touch()
    (inside / "away").symlink_to(outside)
    (inside / "deep" / "back").symlink_to(inside)
    (inside / "again").symlink_to(inside / "deep")
    (inside / "itself").symlink_to(inside / "itself")
    found = find_images([inside], recursive=True)
    assert names(found, inside) == ["away/x.jpg", "deep/x.jpg"]
    assert names(find_images([inside]), inside) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_leaves_out_only_itself(tmp_path):
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
    (tmp_path / "closed").chmod(0)
    try:
        found = find_images([tmp_path, tmp_path / "closed" / "x.jpg"], recursive=True)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert names(found, tmp_path) == ["open/x.jpg"]
    assert [str(error) for error in found.problems] == [
        f"{tmp_path}/closed: permission denied; make it readable",
        f"{tmp_path}/closed/x.jpg: permission denied; make it readable",
    ]


@pytest.mark.parametrize("name", ["gone.jpg", "x" * 300 + ".jpg", "a\0b.jpg", ""])
def test_a_name_without_a_file_leaves_out_only_itself(tmp_path, name, photo):
    photo.save(tmp_path / "a.png")
    found = find_images([name, tmp_path / "a.png"])
    assert found.images == [tmp_path / "a.png"]
    assert len(found.problems) == 1


def test_errors_show_no_control_characters():
    shown = str(
        DataError("no image at \x1b[31mred\n\u202ea\udcff \U0001f468\u200d\U0001f469 é.jpg")
    )
    assert shown == "no image at \\x1b[31mred \\u202ea\\udcff \U0001f468\u200d\U0001f469 é.jpg"
