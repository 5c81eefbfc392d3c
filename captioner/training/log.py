"""The log of a training run: JSON lines, TensorBoard and a plot of the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from captioner.errors import DataError

STEPS_BETWEEN_LINES = 20


class TrainingLog:
    """Writes `log.jsonl`, `tensorboard/` and `curves.png` into a run's folder.

    A resumed run first cuts off the lines after its saved state (`log_bytes`), so that the log
    reads as if there had been no interruption.
    """

    def __init__(self, folder: Path, log_bytes: int = 0, step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, used here only

        self.folder = folder
        self._file = (folder / "log.jsonl").open("ab")
        self._file.truncate(log_bytes)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()

    def step(self, step: int, **values: float) -> None:
        """Log the figures of an optimizer step; every 20th step is kept."""
        if step % STEPS_BETWEEN_LINES == 0:
            self._write({"step": step, **values})
            for name, value in values.items():
                self._board.add_scalar(f"step/{name}", value, step)

    def epoch(self, epoch: int, step: int, **values: float) -> None:
        """Log the figures of an epoch and plot the curves again."""
        self._write({"epoch": epoch, "step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(f"epoch/{name}", value, epoch)
        self.flush()
        plot_curves(self.folder)

    def changed(self, step: int, settings: Mapping[str, Any]) -> None:
        """Log the settings that changed on resume, [before, now] of each, if any did."""
        if settings:
            self._write({"step": step, "changed": dict(settings)})

    def flush(self) -> int:
        """Write buffered lines to disk; return the size of `log.jsonl` in bytes."""
        self._file.flush()
        self._board.flush()
        return self._file.tell()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write((json.dumps(entry) + "\n").encode())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's log, in order; raise DataError if it has no log."""
    try:
        lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    except OSError:
        raise DataError(f"{folder}: no log.jsonl; give the folder of a training run") from None
    return [json.loads(line) for line in lines]


def plot_curves(folder: Path) -> Path:
    """Plot loss and CIDEr over the epochs as `curves.png`; return its path."""
    from matplotlib.figure import Figure  # no global state, works without a display

    epochs = [entry for entry in read_log(folder) if "epoch" in entry]
    numbers = [entry["epoch"] for entry in epochs]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(numbers, [entry["train_loss"] for entry in epochs], "o-", label="training")
    left.plot(numbers, [entry["val_loss"] for entry in epochs], "o-", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy per token (nats)", title="Loss")
    left.legend()
    right.plot(numbers, [entry["cider"] for entry in epochs], "o-", color="tab:green")
    right.set(xlabel="epoch", ylabel="CIDEr", title="CIDEr of generated validation captions")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    path = folder / "curves.png"
    partial = folder / "curves.part.png"
    figure.savefig(partial, dpi=110)
    partial.replace(path)
    return path
