"""The architecture: a module imports only from the layers below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("errors", "buffers", "packed"),
    ("config", "arguments", "files", "vocabulary", "lstm", "additive"),
    (
        "images",
        "features",
        "search",
        "metrics",
        "cider",
        "results",
        "journal",
        "recurrence",
        "attention",
        "device",
        "outputs",
    ),
    ("encoder", "decoder", "data", "significance", "diversity", "collect"),
    ("checkpoint", "objective", "self_critical", "photographs", "report", "table", "flow"),
    ("ensemble",),
    ("pipeline", "evaluate", "run"),
    ("train", "overview"),
    ("cli",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """Full dotted names of everything a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(str(node.module))
    return found


def modules_used(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports_of(path)]
    return {name[1] for name in parts if name[0] == "captioner" and len(name) > 1}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "captioner").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_a_module_imports_only_from_lower_layers(path):
    for used in modules_used(path) & set(LAYER):
        assert LAYER[used] < LAYER[path.stem], f"{path.stem} imports {used}"


def test_every_module_has_a_layer():
    assert {path.stem for path in (ROOT / "captioner").glob("[!_]*.py")} == set(LAYER)


def test_the_library_knows_neither_the_page_nor_the_preparation():
    for path in (ROOT / "captioner").glob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"app", "data_prep", "gradio"}, path.name


def test_the_preparation_uses_only_the_lower_half_of_the_library_and_a_checkpoints_encoder():
    for path in (ROOT / "data_prep").glob("*.py"):
        for used in modules_used(path) & set(LAYER):
            assert LAYER[used] <= 3 or used == "checkpoint", f"{path.name} imports {used}"


def test_the_page_uses_only_the_public_names_and_the_overlay_and_its_command_the_parser():
    for path in (ROOT / "app").glob("*.py"):
        beyond = {"arguments"} if path.name == "__main__.py" else {"attention"}
        assert modules_used(path) & set(LAYER) <= beyond, path.name


def test_nltk_is_used_by_the_vocabulary_alone():
    users = {p.stem for p in (ROOT / "captioner").glob("*.py") if "nltk.tokenize" in imports_of(p)}
    assert users == {"vocabulary"}
