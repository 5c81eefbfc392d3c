"""README and docs keep their word: their commands run, the files they name exist."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import data_prep.__main__
from captioner import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CAPTIONS = ("a red dog runs", "a dog sleeps in the snow")


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.S | re.M)


def commands(page: str) -> list[str]:
    """Return the commands of a page, one a line of its bash blocks."""
    return [line for block in blocks(page, "bash") for line in block.splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch, paint: Callable[..., None]) -> Path:
    """Move into a folder that holds what the README's commands name."""
    for name in ("configs", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "checkpoints" / "samples" / "chelsea.jpg", tmp_path / "photo.jpg")
    names = [f"{number}.jpg" for number in range(12)]
    paint(tmp_path / "photos", *names)
    paint(tmp_path / "coco" / "val2014", *names)
    lines = [f"{name},{caption}" for name in names for caption in CAPTIONS]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    images = [
        {
            "filepath": "val2014",
            "filename": name,
            "cocoid": number,
            "split": "val" if number < 5 else "train",
            "sentences": [{"raw": caption} for caption in CAPTIONS],
        }
        for number, name in enumerate(names)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_references(data: Path, file: Path) -> None:
    """Write the captions of a prepared folder as a COCO captions file."""
    examples = json.loads((data / "examples.json").read_text("utf-8"))
    annotations = [
        {"image_id": example["image_id"], "caption": caption}
        for example in examples
        for caption in example["captions"]
    ]
    file.write_text(json.dumps({"annotations": annotations}))


def run_command(command: str, place: Path) -> None:
    """Run a command of the README, made smaller where it would take long."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "data_prep"]:
        smaller = ["--images", "40"] if words[3] == "toy" else []
        code = data_prep.__main__.main([*words[3:], *smaller])
    else:
        assert words[0] == "captioner", command
        if words[1] == "score":
            write_references(place / "data" / "mine", place / "captions.json")
        smaller = ["--train.epochs", "1", "--train.threads", "1"] if words[1] == "train" else []
        code = cli.main([*words[1:], *smaller])
    assert code == 0, command


@pytest.mark.slow
def test_the_commands_of_readme_and_of_finetuning_run_one_after_another(place, capsys):
    for command in [*commands("README.md"), *commands("docs/finetune.md")]:
        run_command(command, place)
    assert "CIDEr" in capsys.readouterr().out
    for written in ("runs/toy/curves.png", "attention.png", "results.json", "report.html"):
        assert (place / written).exists(), written
    assert (place / "runs" / "mine_self_critical" / "best").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/caption.md"])
def test_the_python_of_a_page_runs(page, place, capsys):
    assert blocks(page, "python")
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out


def test_readme_has_a_command_of_each_kind():
    named = {tuple(command.split()[:2]) for command in commands("README.md")}
    assert {("captioner", name) for name in ("train", "evaluate", "score", "caption")} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_config_checkpoint_and_make_target_that_a_page_names_is_there(page):
    text = page.read_text("utf-8")
    for name in re.findall(r"\b(?:configs|checkpoints)/[\w/]+(?:\.\w+)?", text):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^|`)make (\w[\w-]*)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_is_short_and_shows_an_image_and_a_score_early():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert "![" in "\n".join(lines[:10])
    assert "CIDEr" in "\n".join(lines[:30])
