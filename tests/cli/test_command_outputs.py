"""The files that commands write: where they go, and that they overwrite nothing."""

import pytest
from console import CAT, fails
from tiny import write_checkpoint

from captioner.cli import main


@pytest.mark.parametrize(
    ("names", "sheets"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg.png", "a.png.png", "b.png.png"]),
        (["a/x.jpg", "b/x.jpg", "c.jpg"], ["a/x.png", "b/x.png", "c.png"]),
        (["a/x.jpg", "a/X.jpg", "b/x.png"], ["1-X.png", "2-x.png", "3-x.png"]),
        (["a/x.jpg", "a/x.png", "b/x.png"], ["a/x.jpg.png", "a/x.png.png", "b/x.png.png"]),
    ],
)
def test_every_image_has_an_attention_sheet_of_its_own(
    names, sheets, untrained, capsys, tmp_path, paint
):
    paint(tmp_path / "in", *names)
    if len(list((tmp_path / "in").rglob("*.*"))) < len(names):
        pytest.skip("this file system does not tell upper from lower case")
    arguments = ["caption", tmp_path / "in", "--recursive", "--checkpoint", untrained]
    arguments += ["--beam-size", "1", "--max-words", "1", "--attention", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 0
    drawn = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path / "out").as_posix() for path in drawn] == sorted(sheets)


def test_one_image_and_a_folder_for_its_sheet(untrained, capsys, tmp_path):
    arguments = ["caption", CAT, "--checkpoint", str(untrained), "--attention", str(tmp_path)]
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["chelsea.png"]


def test_outputs_that_would_overwrite_each_other_are_refused_before_the_work(
    untrained, capsys, tmp_path, paint
):
    paint(tmp_path, "1.png", "x/1.png", "y/7.jpg", "y/7.bmp", "z/cat.jpg")
    common = ["caption", "--checkpoint", untrained]
    both = [*common, tmp_path / "1.png", tmp_path / "x" / "1.png"]
    refused = {
        "have the same image id 1": [*both, "--results", tmp_path / "r.json"],
        "--attention: ": [*common, tmp_path / "1.png", "--attention", tmp_path / "1.png"],
        "7.bmp.png is also the file of --results": [
            *common, tmp_path / "y" / "7.bmp", "--results", tmp_path / "7.bmp.png",
            "--attention", tmp_path / "7.bmp.png",
        ],
        "it is a folder; give a file": [*common, tmp_path / "1.png", "--results", tmp_path / "x"],
        "1.png is not a folder": [*both, "--attention", tmp_path / "1.png"],
        "File name too long": [*common, tmp_path / "1.png", "--attention", "x" * 300],
        "cannot write": ["score", "r", "--references", "s", "--report", "x" * 300],
        "is also the file of --out": [
            "evaluate", untrained, "--data", "d", "--out", tmp_path / "o", "--report",
            tmp_path / "x" / ".." / "o",
        ],
        "is also an input": ["score", "r", "--references", "s", "--report", "s"],
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    for message, arguments in refused.items():
        assert message in fails(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_run_into_the_folder_of_the_images_spares_them(untrained, capsys, tmp_path, paint):
    paint(tmp_path, "x.jpg", "y.jpg")
    arguments = ["caption", tmp_path, "--checkpoint", untrained, "--attention", tmp_path]
    assert main([str(argument) for argument in arguments]) == 0
    sheet = (tmp_path / "x.png").read_bytes()
    main([str(argument) for argument in arguments])
    assert (tmp_path / "x.png").read_bytes() == sheet


def test_a_decoder_without_attention_says_so_before_the_work(capsys, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "show_tell")
    line = fails(capsys, "caption", CAT, "--checkpoint", folder, "--attention", tmp_path / "a.png")
    assert "decoder has no attention" in line
