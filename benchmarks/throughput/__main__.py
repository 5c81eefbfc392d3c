"""The command `python -m benchmarks.throughput`: the speed beside plain loops for the same job."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.reporting import command_line, print_machine
from benchmarks.throughput.items import FILES, GPU_ITEMS, ITEMS
from benchmarks.throughput.measure import Result, measure
from benchmarks.throughput.report import as_json, head, notes, plot_results, row
from captioner.cli.parsing import Parser, exit_code, picture, positive
from captioner.device import choose_device
from captioner.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _throughput(given))


def _throughput(given: Sequence[str]) -> int:
    args = _parser().parse_args(given)
    device = choose_device(args.device)
    _check_outputs(args.json, args.plot)
    names = _chosen(args.only, device)
    judged = device.type == "cpu" and not args.quick
    with _one_thread():
        header = print_machine(command_line("benchmarks.throughput", given), device)
        print("", head(), sep="\n", flush=True)
        rounds = args.rounds or (2 if args.quick else 5)
        results, failed = _measure(names, rounds, args.quick, device, judged)
    print("", *notes(results, device), sep="\n")
    if args.json:
        document = as_json(results, header, judged=judged)
        args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if args.plot and results:
        plot_results(results, header, args.plot)
    if failed:
        print(f"error: {', '.join(failed)}: not measured; see the messages above", file=sys.stderr)
    return 1 if failed else 0


def _measure(
    names: list[str], rounds: int, quick: bool, device: torch.device, judged: bool
) -> tuple[list[Result], list[str]]:
    """Measure and print one item after the other; return the results and the items that failed."""
    results, failed = [], []
    with tqdm(total=len(names) * (rounds + 1), unit="round") as bar:  # one to warm up
        for number, name in enumerate(names, 1):
            bar.set_description(name)
            try:
                result = measure(
                    name, ITEMS[name], rounds=rounds, quick=quick, device=device,
                    after_round=bar.update,
                )  # fmt: skip
            except Exception as error:  # whatever it is, the other items can be measured
                failed.append(name)
                line = f"{name}  failed: {type(error).__name__}: {error}"
            else:
                results.append(result)
                line = row(result, judged=judged)
            with tqdm.external_write_mode():
                print(line, flush=True)
            bar.update(number * (rounds + 1) - bar.n)
    return results, failed


def _chosen(only: list[str] | None, device: torch.device) -> list[str]:
    """Return the items to measure, in the table's order."""
    possible = GPU_ITEMS if device.type == "cuda" else tuple(ITEMS)
    for name in only or ():
        if name not in possible:
            raise ConfigError(
                f"no item {name!r} on {device.type}; choose from {', '.join(possible)}"
            )
    chosen = [name for name in possible if name in (only or possible)]
    for name in chosen:
        for path in FILES.get(name, ()):
            if not path.exists():
                raise ConfigError(
                    f"item {name} reads {path}, which is missing; run the benchmark in a whole "
                    "checkout, or omit the item with --only"
                )
    return chosen


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.throughput",
        description="Measure training, search and encoders beside plain loops for the same job and "
        "the bound set by the matrix products.",
        epilog=f"items: {', '.join(ITEMS)}",
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="file for every figure, as JSON")
    add("--plot", type=picture, metavar="FILE", help="file for a plot of ratios and shares")
    add("--only", nargs="+", metavar="NAME", help="items to measure (all)")
    add("--rounds", type=positive, metavar="N",
        help="rounds after the one to warm up (5; 2 with --quick)")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), default="cpu",
        help="cuda: core and train items only, bfloat16, wall time (%(default)s)")  # fmt: skip
    add("--quick", action="store_true", help="tiny sizes, to try the command; no bars")
    return parser


def _check_outputs(*paths: Path | None) -> None:
    """Raise ConfigError for a path that cannot be written, before anything is measured."""
    for path in filter(None, paths):
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"{path} cannot be written; give a file in a folder that exists")


if __name__ == "__main__":
    sys.exit(main())
