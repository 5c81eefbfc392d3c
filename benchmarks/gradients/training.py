"""Train a captioner and measure, every few steps, the gradient along c and through h."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gradients.flow import gradient_flow, unroll
from benchmarks.reporting import plot
from captioner.config import Config
from captioner.data.dataset import Batch
from captioner.training.loop import train
from captioner.training.run import Run
from captioner.training.schedule import detach_probability


def train_measured(
    config: Config,
    every: int,
    *,
    resume: bool = False,
    show_progress: bool = True,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Train as `config` says; write measurements to `flow.jsonl` in `config.out`, return its path.

    A resumed run measures the steps after its last save again; the last line of a step counts.
    Raises what `train` raises.
    """
    path = Path(config.out) / "flow.jsonl"

    def measure(run: Run, batch: Batch) -> None:
        step = run.progress.step
        if step % every == 0:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **flow_figures(run, batch)}) + "\n")

    train(config, resume=resume, show_progress=show_progress, stop=stop, after_step=measure)
    return path


def flow_figures(run: Run, batch: Batch) -> dict[str, float]:
    """Return the norms of a step's gradient along c and through h, and the share of h.

    Of the cross-entropy of the batch's captions at the present weights, without dropout and with
    h-detach in expectation. Leaves the random state and the gradients as they are.
    """
    settings = run.config.train
    with torch.no_grad():
        batch = run.network.encode(batch)
    unrolled = unroll(run.decoder, batch.features, batch.captions, batch.targets)
    done = (run.progress.step - 1) / (run.batches * settings.epochs)  # as in the step just done
    unrolled.expect(detach_probability(settings, done), settings.detach_attention)
    flow = gradient_flow(unrolled)
    return {"flow_c": flow.cell, "flow_h": flow.hidden, "flow_h_share": flow.share}


def read_flow(path: Path) -> list[dict[str, float]]:
    """Read the measurements in the order of their steps."""
    entries = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    by_step = {entry["step"]: entry for entry in entries}
    return [by_step[step] for step in sorted(by_step)]


def plot_flow(path: Path, note: str) -> Path:
    """Plot h's share of the gradient over the steps as `flow.png` beside the measurements."""
    entries = read_flow(path)
    with plot(path.with_suffix(".png"), note, (6, 3.5)) as ((axes,),):
        steps, shares = ([entry[name] for entry in entries] for name in ("step", "flow_h_share"))
        axes.plot(steps, [100 * share for share in shares], color="tab:purple")
        axes.set(xlabel="step", ylabel="%", ylim=(0, 100), title="Gradient through h")
    return path.with_suffix(".png")
