"""The command `python -m benchmarks.memory`: tasks that need long memories."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.memory.experiment import Experiment, Trial
from benchmarks.memory.training import Check, run_trial
from captioner.arguments import SettingsParser
from captioner.errors import CaptionerError, ConfigError

DESCRIPTION = """Tasks that need long memories: h-detach beside a plain LSTM and other networks.

  python -m benchmarks.memory train    --config configs/memory/copying30.yaml
  python -m benchmarks.memory report   --config configs/memory/copying30.yaml --plot copying30.png
  python -m benchmarks.memory transfer --config configs/memory/copying30.yaml --lengths 20 30 60

`train` goes on where it stopped; started twice it shares the trials between two processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train}
    try:
        if not given or given[0] in ("-h", "--help"):
            print(DESCRIPTION)
            return 0
        if given[0] not in commands:
            raise ConfigError(f"no command {given[0]!r}; choose from {', '.join(commands)}")
        commands[given[0]](given[1:])
    except CaptionerError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last validation", file=sys.stderr)
        return 130
    return 0


def _train(arguments: Sequence[str]) -> None:
    parser = _parser("train", "Train what is not trained yet, trial by trial.")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each process")
    settings = parser.read(arguments)
    import torch

    torch.set_num_threads(settings.threads)
    trials = _experiment(parser, settings).trials()
    for number, trial in enumerate(trials, 1):
        _train_one(trial, f"{number}/{len(trials)} {trial.folder.name}")


def _train_one(trial: Trial, name: str) -> None:
    with tqdm(total=trial.experiment.steps, unit="step", desc=name, mininterval=5) as bar:

        def tell(check: Check) -> None:
            bar.update(check.step - bar.n)
            bar.set_postfix(loss=f"{check.train_loss:.4f}", accuracy=f"{check.accuracy:.3f}")

        run_trial(trial, tell)


def _parser(command: str, description: str) -> SettingsParser:
    parser = SettingsParser(prog=f"python -m benchmarks.memory {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_class_arguments(Experiment)
    return parser


def _experiment(parser: SettingsParser, settings: Namespace) -> Experiment:
    values = parser.instantiate(settings)
    names = [field.name for field in dataclasses.fields(Experiment)]
    return Experiment(**{name: values[name] for name in names})


if __name__ == "__main__":
    sys.exit(main())
