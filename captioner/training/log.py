"""The log of a training run: JSON lines, TensorBoard and a plot of the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from captioner.files import read_text, replacing

STEPS_BETWEEN_LINES = 20


class Journal:
    """Writes `log.jsonl`, `tensorboard/` and `curves.png` into a run's folder.

    A resumed run first cuts off what was logged after its saved state (`log_bytes`), so that the
    log reads as if there had been no interruption.
    """

    def __init__(self, folder: Path, log_bytes: int = 0, step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, used here only

        self.folder = folder
        self._file = (folder / "log.jsonl").open("ab")
        self._file.truncate(log_bytes)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> Journal:
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
        """Log the figures of one optimizer step; every 20th is kept."""
        if step % STEPS_BETWEEN_LINES == 0:
            self.note(step, **values)

    def note(self, step: int, **values: float) -> None:
        """Log figures that are made after some steps only, in a line of their own."""
        self._write({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(f"step/{name}", value, step)

    def epoch(self, epoch: int, step: int, **values: float) -> None:
        """Log the figures of one epoch and draw the curves anew."""
        self._write({"epoch": epoch, "step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(f"epoch/{name}", value, epoch)
        self.flush()
        plot_curves(self.folder)

    def changed(self, step: int, settings: Mapping[str, Any]) -> None:
        """Log settings that are others from here on, if there are any: [before, now] of each."""
        if settings:
            self._write({"step": step, "changed": dict(settings)})

    def flush(self) -> int:
        """Bring everything to the disk; returns the size of `log.jsonl`."""
        self._file.flush()
        self._board.flush()
        return self._file.tell()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write((json.dumps(entry) + "\n").encode())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Entries of a run's log, in order; raises DataError if there is none."""
    lines = read_text(folder / "log.jsonl", missing=f"no log.jsonl in {folder}").splitlines()
    return [json.loads(line) for line in lines]


def plot_curves(folder: Path) -> Path:
    """Draw loss and CIDEr over the epochs, and h's share of the gradient, as `curves.png`."""
    from matplotlib.figure import Figure  # no global state, works without a display

    log = read_log(folder)
    epochs = [entry for entry in log if "epoch" in entry]
    flows = [entry for entry in log if "flow_h_share" in entry]
    numbers = [entry["epoch"] for entry in epochs]
    panels = 3 if flows else 2
    figure = Figure(figsize=(4.5 * panels, 3.5), layout="constrained")
    left, right, *more = figure.subplots(1, panels)
    left.plot(numbers, [entry["train_loss"] for entry in epochs], "o-", label="training")
    left.plot(numbers, [entry["val_loss"] for entry in epochs], "o-", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy a token (nats)", title="Loss")
    left.legend()
    right.plot(numbers, [entry["cider"] for entry in epochs], "o-", color="tab:green")
    right.set(xlabel="epoch", ylabel="CIDEr", title="CIDEr of generated validation captions")
    for axes in more:
        steps = [entry["step"] for entry in flows]
        axes.plot(steps, [100 * entry["flow_h_share"] for entry in flows], color="tab:purple")
        axes.set(xlabel="step", ylabel="%", ylim=(0, 100), title="Gradient that comes through h")
    for axes in (left, right, *more):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    path = folder / "curves.png"
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    return path
