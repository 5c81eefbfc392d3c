"""The command `python -m benchmarks.engines`: the engines of HDetachLSTM beside nn.LSTM.

First compares the outputs and gradients of each engine with the definition, in float64. Then
measures forward and backward passes in float32 with p = 0.25, the sides in turn.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.reporting import command_line, print_machine, table
from benchmarks.throughput.measure import clock
from captioner.cli.parsing import Parser, exit_code, positive
from captioner.device import choose_device
from captioner.model.lstm import Engine, HDetachLSTM

SHAPES = ((16, 80, 512, 512), (320, 100, 1, 128), (784, 100, 1, 100))  # T, B, I, H
ENGINES: tuple[Engine, ...] = ("segments", "definition", "fused")
DETACH = 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return exit_code(lambda: _engines(sys.argv[1:] if argv is None else argv))


def _engines(given: Sequence[str]) -> None:
    parser = Parser(prog="python -m benchmarks.engines", description=__doc__)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="device (%(default)s)")
    add("--rounds", type=positive, default=5, metavar="N",
        help="rounds after the one to warm up (%(default)s)")  # fmt: skip
    args = parser.parse_args(given)
    device = choose_device(args.device)
    torch.set_num_threads(1)
    print_machine(command_line("benchmarks.engines", given), device)
    for engine in ENGINES:
        print(f"{engine}, largest difference from the definition: {difference(engine, device):.1e}")
    names = {"T={} B={} I={} H={}".format(*shape): shape for shape in SHAPES}
    rows = [{"shape": name, **measure(shape, device, args.rounds)} for name, shape in names.items()]
    print("", "sequences/s, median (lowest..highest)", table(rows, ["shape"]), sep="\n")


def difference(engine: Engine, device: torch.device) -> float:
    """Return the largest relative difference of outputs and gradients from the definition."""
    torch.manual_seed(0)
    lstm = HDetachLSTM(32, 64, 2, detach_prob=DETACH, engine="definition", dtype=torch.float64)
    x, blocked = torch.randn(60, 20, 32, dtype=torch.float64), lstm.draw(60)

    def results() -> list[Tensor]:
        output, _ = lstm(x.to(lstm.weight_ih_l0.device), None, blocked)
        gradients = torch.autograd.grad(output.square().sum(), list(lstm.parameters()))
        return [output.detach().cpu(), *(gradient.cpu() for gradient in gradients)]

    right = results()
    lstm.to(device).engine = engine
    return max(
        float((found - wanted).abs().max() / wanted.abs().max())
        for found, wanted in zip(results(), right, strict=True)
    )


def measure(shape: tuple[int, int, int, int], device: torch.device, rounds: int) -> dict[str, str]:
    """Return the sequences per second of every side, for a shape (T, B, I, H)."""
    T, B, I, H = shape
    x = torch.randn(T, B, I, device=device)
    sides: list[nn.Module] = [HDetachLSTM(I, H, detach_prob=DETACH, engine=e) for e in ENGINES]
    sides = [side.to(device) for side in [*sides, nn.LSTM(I, H)]]
    taken: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        order = list(zip(sides, taken, strict=True))
        for side, seconds in order if number % 2 else order[::-1]:
            gc.collect()
            start = clock(device)
            side.zero_grad()
            side(x)[0].sum().backward()
            seconds.append(clock(device) - start)
    speeds = [[B / t for t in seconds[1:]] for seconds in taken]
    cells = [f"{median(speed):.0f} ({min(speed):.0f}..{max(speed):.0f})" for speed in speeds]
    return dict(zip([*ENGINES, "nn.LSTM"], cells, strict=True))


if __name__ == "__main__":
    sys.exit(main())
