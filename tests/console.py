"""The command line in tests: sample images, and the one line that a failing command prints."""

from pathlib import Path

from captioner.cli import main

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "checkpoints" / "samples"
CAT = str(SAMPLES / "chelsea.jpg")


def fails(capsys, *arguments):
    """Run a command that must fail and return the one line that it prints."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    return line
