"""The command `python -m benchmarks.definition`: compare fused training with the definition.

Trains the decoder of a config twice from one seed, step by step in turn: with the fused passes and
by the definition. Prints the difference between the losses and the CPU time of both.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.cli.parsing import exit_code
from captioner.cli.settings import SettingsParser
from captioner.config import Config
from captioner.errors import ConfigError
from captioner.model.decoder import ShowAttendTell
from captioner.model.lstm import HDetachLSTM
from captioner.training.loop import epoch_batches, train_step
from captioner.training.run import Run, prepare


@dataclass
class Side:
    """One of the two trainings."""

    steps: Iterator[float]  # the loss of the next batch, trained when it is read
    random: Tensor  # state of torch's generator between the steps
    losses: list[float]
    seconds: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return exit_code(lambda: _definition(sys.argv[1:] if argv is None else argv))


def _definition(given: Sequence[str]) -> None:
    parser = SettingsParser(prog="python -m benchmarks.definition", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    parser.add_class_arguments(Config)
    settings = parser.read(given)
    if settings.steps < 1:
        raise ConfigError(f"steps is {settings.steps}; it must be >= 1")
    fused, defined = compare(parser.made(Config, settings), settings.steps)
    apart = max(abs(a - b) for a, b in zip(fused.losses, defined.losses, strict=True))
    ratio = sorted(b / a for a, b in zip(fused.seconds, defined.seconds, strict=True))
    print(f"steps: {settings.steps}, loss {fused.losses[0]:.4f} -> {fused.losses[-1]:.4f}")
    print(f"largest difference between the two losses of a step: {apart:.2g}")
    print(f"CPU time of the definition: {ratio[len(ratio) // 2]:.2f} x that of the fused passes")


def compare(config: Config, steps: int) -> tuple[Side, Side]:
    """Train `steps` steps fused and by the definition, in turn."""
    with tempfile.TemporaryDirectory() as out:
        sides = []
        for fused in (True, False):
            run = prepare(replace(config, out=f"{out}/{fused}"), resume=False)
            for module in run.decoder.modules():
                if isinstance(module, HDetachLSTM):
                    module.engine = "auto" if fused else "definition"
                elif isinstance(module, ShowAttendTell):
                    module.fused = fused
            sides.append(Side(_train(run), torch.get_rng_state(), [], []))
        for _ in tqdm(range(steps), unit="step"):
            for side in sides:
                torch.set_rng_state(side.random)
                start = time.process_time()
                side.losses.append(next(side.steps))
                side.seconds.append(time.process_time() - start)
                side.random = torch.get_rng_state()
        return sides[0], sides[1]


def _train(run: Run) -> Iterator[float]:
    """Train epoch by epoch and yield the loss of each step."""
    run.decoder.train()
    while True:
        for batch in epoch_batches(run):
            yield train_step(run, batch)["loss"]
        run.progress.next_epoch()


if __name__ == "__main__":
    sys.exit(main())
