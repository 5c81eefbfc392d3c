"""The throughput benchmark's items: each runs at its tiny size, its files are there."""

import ast
from pathlib import Path

import pytest
import torch

from benchmarks.throughput import items
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.items import FILES, ITEMS

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_the_files_that_items_read_are_there():
    assert FILES
    for paths in FILES.values():
        for path in paths:
            assert path.exists()
            assert path.is_relative_to(ROOT)


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("name", [name for name in ITEMS if not name.startswith("train-")])
def test_every_item_runs_on_every_side_and_in_its_stages(name):
    item = ITEMS[name](True, CPU)
    for build in item.sides.values():
        build()()
    if item.stages:
        assert min(item.stages()().values()) >= 0


def test_a_missing_file_is_known_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(items.FILES, "photo", (tmp_path / "gone.jpg",))
    assert main(["--quick"]) == 1
    said = capsys.readouterr()
    assert "gone.jpg, which is missing" in said.err
    assert not said.out


def test_every_path_made_from_a_source_files_own_place_exists():
    """`parents[n]` is right only until a folder moves: each must lead to the checkout's top."""
    for folder in ("benchmarks", "captioner", "data_prep", "app"):
        for source in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text("utf-8"))):
                if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith(
                    "Path(__file__).resolve().parents"
                ):
                    assert isinstance(node.slice, ast.Constant)
                    assert source.resolve().parents[node.slice.value] == ROOT, source
