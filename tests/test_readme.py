"""README keeps its word: its commands run, its files exist."""

import re
import shlex
from pathlib import Path

import pytest

import data_prep.__main__
from captioner import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SMALLER = {"data_prep": ["--images", "40"], "train": ["--train.epochs", "1"]}


@pytest.mark.slow
def test_the_commands_for_the_toy_set_run_one_after_another(tmp_path, monkeypatch, capsys):
    section = README.split("## Try the whole path in a minute")[1]
    commands = section.split("```")[1].strip().splitlines()
    assert len(commands) == 4
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = shlex.split(command)
        if words[:3] == ["python", "-m", "data_prep"]:
            assert data_prep.__main__.main([*words[3:], *SMALLER["data_prep"]]) == 0
        else:
            assert words[0] == "captioner"
            assert cli.main([*words[1:], *SMALLER.get(words[1], [])]) == 0
    printed = capsys.readouterr().out
    assert "CIDEr" in printed
    assert (tmp_path / "runs/toy/curves.png").exists()


def test_every_file_that_readme_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_that_readme_names_is_there():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`?make (\w[\w-]*)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_shows_a_picture_and_a_result_early():
    top = "\n".join(README.splitlines()[:30])
    assert "![" in top
    assert "CIDEr" in top
