"""The command `python -m benchmarks.memory`: train on tasks that need long memories, compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.gradients.report import parts_table
from benchmarks.memory.experiment import Experiment, Trial
from benchmarks.memory.lags import NAMES, copying_lags
from benchmarks.memory.report import (
    SOLVED,
    pairs,
    pairs_table,
    plot_curves,
    plot_transfer,
    rows,
    rows_table,
    write_checks,
    write_trials,
)  # fmt: skip
from benchmarks.memory.running import run_trials
from benchmarks.memory.training import Check, Outcome, read_outcome
from benchmarks.memory.transfer import transfer, transfer_table
from benchmarks.reporting import command_line, print_machine, short_note
from benchmarks.trials import print_machines
from captioner.cli.parsing import exit_code, picture
from captioner.cli.settings import SettingsParser
from captioner.device import choose_device
from captioner.errors import ConfigError

DESCRIPTION = """Tasks that need long memories: h-detach beside a plain LSTM and other networks.

  python -m benchmarks.memory train    --config configs/memory/copying30.yaml
  python -m benchmarks.memory report   --config configs/memory/copying30.yaml --plot copying30.png
  python -m benchmarks.memory transfer --config configs/memory/copying10.yaml --lengths [10,20,30]
  python -m benchmarks.memory gradients --config configs/memory/copying30.yaml --lags [10,40]

`train` resumes where it stopped; started twice, two processes share the trials."""
_MODULE = "benchmarks.memory"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(given), "the same command goes on from the last validation")


def _run(given: Sequence[str]) -> None:
    commands = {"train": _train, "report": _report, "transfer": _transfer, "gradients": _gradients}
    if not given or given[0] in ("-h", "--help"):
        print(DESCRIPTION)
        return
    if given[0] not in commands:
        raise ConfigError(f"no command {given[0]!r}; choose from {', '.join(commands)}")
    commands[given[0]](given[1:])


def _train(arguments: Sequence[str]) -> None:
    parser = _parser("train", "Train the trials that are not finished yet, then report.")
    add = parser.add_argument
    add("--threads", type=int, default=1, help="CPU threads")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--together", type=int, default=0, metavar="N",
        help="LSTMs trained as one with stacked weights; 0: all on a GPU, 1 on a CPU")  # fmt: skip
    settings = parser.read(arguments)
    if settings.threads < 1 or settings.together < 0:
        raise ConfigError("threads must be >= 1, together >= 0")
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    trials = parser.made(Experiment, settings).trials()
    size = settings.together or (len(trials) if device.type == "cuda" else 1)
    _run_all(trials, size, device)
    _print_report(trials, command_line(_MODULE, ["train", *arguments]))


def _run_all(trials: Sequence[Trial], size: int, device: torch.device) -> None:
    """Train the trials, `size` at once, under a progress bar."""
    with tqdm(total=sum(trial.experiment.steps for trial in trials), unit="step") as bar:
        done: dict[Trial, int] = {}

        def show(trial: Trial, check: Check) -> None:
            done[trial] = check.step
            bar.set_description(trial.folder.name)
            bar.set_postfix(
                step=check.step, loss=f"{check.train_loss:.4f}", accuracy=f"{check.accuracy:.3f}"
            )
            bar.update(sum(done.values()) - bar.n)

        for start in range(0, len(trials), size):
            group = trials[start : start + size]
            run_trials(group, show, device=device)
            done.update((trial, trial.experiment.steps) for trial in group)
            bar.update(sum(done.values()) - bar.n)


def _report(arguments: Sequence[str]) -> None:
    parser = _parser("report", "Report the finished trials; write CSV files to `out`.")
    _add_plot(parser, "validation accuracy over the steps")
    parser.add_argument(
        "--solved", type=float, default=SOLVED, help="validation accuracy that counts as solved"
    )
    settings = parser.read(arguments)
    experiment, solved = parser.made(Experiment, settings), settings.solved
    if not 0 < solved <= 1:
        raise ConfigError(f"solved is {solved}; it must be above 0 and at most 1")
    command = command_line(_MODULE, ["report", *arguments])
    outcomes, note = _print_report(experiment.trials(), command, solved)
    if compared := pairs(outcomes, solved):
        print("", "Seed by seed: points, mean ± its standard error", sep="\n")
        print(pairs_table(compared))
    write_trials(outcomes, Path(experiment.out) / "trials.csv", solved)
    write_checks(outcomes, Path(experiment.out) / "checks.csv")
    if settings.plot:
        plot_curves(outcomes, _title(experiment), note, settings.plot)


def _transfer(arguments: Sequence[str]) -> None:
    parser = _parser("transfer", "Test networks trained on copying at other lengths T.")
    parser.add_argument(
        "--lengths", type=list[int], default=[10, 20, 30, 60, 100, 200, 300], help="T to test at"
    )
    _add_plot(parser, "accuracy over T")
    settings = parser.read(arguments)
    experiment = parser.made(Experiment, settings)
    if not settings.lengths:
        raise ConfigError("lengths is empty; give at least one")
    found = transfer(experiment.trials(), settings.lengths)
    header = print_machine(command_line(_MODULE, ["transfer", *arguments]))
    print("accuracy in %: mean (lowest to highest) over the trials", "", sep="\n")
    print(transfer_table(found))
    if settings.plot:
        plot_transfer(found, experiment.length, short_note(header), settings.plot)


def _gradients(arguments: Sequence[str]) -> None:
    parser = _parser("gradients", "Split gradients over lags into their parts along c and h.")
    parser.add_argument("--lags", type=list[int], default=[1, 10, 20], help="steps back")
    parser.add_argument("--sequences", type=int, default=50, help="validation sequences")
    settings = parser.read(arguments)
    if settings.sequences < 1 or not settings.lags:
        raise ConfigError("sequences must be >= 1 and lags not empty")
    trials = parser.made(Experiment, settings).trials()
    groups, singular = copying_lags(trials, settings.sequences)
    print_machine(command_line(_MODULE, ["gradients", *arguments]))
    print("", "Gradient of an answer's loss in c, lag steps back, medians:", sep="\n")
    print(parts_table(groups, NAMES, settings.lags))
    print("", "Singular values of W_hh, medians over the trials:", singular, sep="\n")


def _print_report(
    trials: Sequence[Trial], command: str, solved: float = SOLVED
) -> tuple[list[Outcome], str]:
    """Print the table of the finished trials; return them and the note for plots."""
    outcomes = [outcome for trial in trials if (outcome := read_outcome(trial)) is not None]
    if not outcomes:
        raise ConfigError(f"no trial in {trials[0].experiment.out} is finished yet; train it first")
    note = print_machines(outcomes, command, len(trials))
    print("accuracy and test in %: mean ± deviation over the trials")
    print(f"solved: validation reached {100 * solved:g} %; steps to it: their median")
    print("", rows_table(rows(outcomes, solved)), sep="\n")
    return outcomes, note


def _title(experiment: Experiment) -> str:
    if experiment.task in ("copying", "adding"):
        return f"{experiment.task}, T = {experiment.length}, H = {experiment.hidden}"
    order = "permuted " if experiment.permuted else ""
    return f"{order}{experiment.task}, H = {experiment.hidden}"


def _parser(command: str, description: str) -> SettingsParser:
    parser = SettingsParser(prog=f"python -m {_MODULE} {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_class_arguments(Experiment)
    return parser


def _add_plot(parser: SettingsParser, what: str) -> None:
    parser.add_argument("--plot", type=picture, help=f"plot of {what}: .png, .svg or .pdf")


if __name__ == "__main__":
    sys.exit(main())
