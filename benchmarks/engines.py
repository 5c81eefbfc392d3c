"""The command `python -m benchmarks.engines`: the engines of HDetachLSTM beside nn.LSTM.

Measures forward and backward passes in float32 with p = 0.25, the sides in turn. Before that, it
compares the outputs and gradients of each engine with the definition, in float64.
"""

from __future__ import annotations

import gc
import shlex
import sys
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.reporting import aligned, machine
from captioner.cli.parsing import Parser, exit_code, positive
from captioner.device import choose_device
from captioner.model.lstm import Engine, HDetachLSTM

SHAPES = ((16, 80, 512, 512), (320, 100, 1, 128), (784, 100, 1, 100))  # T, B, I, H
ENGINES: tuple[Engine, ...] = ("segments", "definition", "fused")
DETACH = 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: _engines(sys.argv[1:] if argv is None else argv))


def _engines(given: Sequence[str]) -> None:
    parser = Parser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--rounds", type=positive, default=5, metavar="N", help="after one to warm up (%(default)s)"
    )
    args = parser.parse_args(given)
    device = choose_device(args.device)
    torch.set_num_threads(1)
    header = machine(shlex.join(["python", "-m", "benchmarks.engines", *given]), device)
    print(*(f"{key}: {value}" for key, value in header.items()), sep="\n")
    for engine in ENGINES:
        print(f"{engine}, largest difference from the definition: {difference(engine, device):.1e}")
    shapes = {"T={} B={} I={} H={}".format(*shape): shape for shape in SHAPES}
    lines = [[name, *measure(shape, device, args.rounds)] for name, shape in shapes.items()]
    print("", "sequences/s, median (least..most)", sep="\n")
    print(aligned(["shape", *ENGINES, "nn.LSTM"], lines, left=["shape"]))


def difference(engine: Engine, device: torch.device) -> float:
    """Largest relative difference of outputs and gradients from the definition on the CPU."""
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


def measure(shape: tuple[int, int, int, int], device: torch.device, rounds: int) -> list[str]:
    """Sequences a second of every side, for a shape (T, B, I, H)."""
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
    return [f"{median(speed):.0f} ({min(speed):.0f}..{max(speed):.0f})" for speed in speeds]


def clock(device: torch.device) -> float:
    """Wall time after all work on a GPU; the processor's time on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    sys.exit(main())
