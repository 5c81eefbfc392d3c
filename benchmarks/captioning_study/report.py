"""What the trials of the captioning study gave, as tables and CSV files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.captioning_study.trials import BASE, PLAIN, Outcome
from benchmarks.reporting import aligned, difference, mean, mean_deviation, write_csv

REACHED = 0.95  # of the best plain score
COLUMNS = (
    "panel", "setting", "trials", "CIDEr best", "CIDEr last", "val loss", "to 95 %", "diverged",
    "s/epoch", "CPU s/epoch", "CIDEr difference", "loss difference", "against",
)  # fmt: skip
_LEFT = ("panel", "panels of", "setting", "against")


@dataclass(frozen=True)
class Row:
    """The trials of one setting together; scores are those of trials that did not diverge.

    Means and deviations (of the sample) over seeds; NaN where there is nothing to tell.
    """

    panel: str
    setting: str
    against: str
    trials: int
    diverged: int
    best: tuple[float, float]  # CIDEr of the best epoch
    last: tuple[float, float]  # of the last epoch
    val_loss: tuple[float, float]  # the lowest of a trial, nats a token
    epochs_to: Sequence[float | None]  # to REACHED of the best plain score; None: never
    seconds: float  # an epoch
    cpu_seconds: float  # an epoch, without Java
    differences: Sequence[float]  # of the best CIDEr, to `against` of the same seed
    loss_differences: Sequence[float]  # of the lowest validation loss


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each panel and setting, in order of appearance."""
    targets = plain_targets(outcomes)
    keys = dict.fromkeys((o.trial.panel, o.trial.setting) for o in outcomes)
    result = []
    for panel, setting in keys:
        all_of_it = [o for o in outcomes if (o.trial.panel, o.trial.setting) == (panel, setting)]
        group = [outcome for outcome in all_of_it if not outcome.diverged]
        target = targets.get(all_of_it[0].trial.family, math.nan)
        result.append(
            Row(
                panel=panel,
                setting=setting,
                against=all_of_it[0].trial.against,
                trials=len(all_of_it),
                diverged=len(all_of_it) - len(group),
                best=mean_deviation([best_cider(outcome) for outcome in group]),
                last=mean_deviation([outcome.epochs[-1]["cider"] for outcome in group]),
                val_loss=mean_deviation([lowest_loss(outcome) for outcome in group]),
                epochs_to=[epochs_to_reach(ciders(outcome), target) for outcome in group],
                seconds=mean([seconds_an_epoch(outcome) for outcome in group]),
                cpu_seconds=mean([o.cpu_seconds for o in group if o.cpu_seconds == o.cpu_seconds]),
                differences=_differences(group, outcomes, best_cider),
                loss_differences=_differences(group, outcomes, lowest_loss),
            )
        )
    return result


def plain_targets(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The score each family is to reach: REACHED of the best of its plain mean curves."""
    targets: dict[str, float] = {}
    plain = [o for o in outcomes if o.trial.setting in (PLAIN, BASE) and not o.diverged]
    for panel in dict.fromkeys(outcome.trial.panel for outcome in plain):
        curves = [outcome for outcome in plain if outcome.trial.panel == panel]
        average = [fmean(epoch) for epoch in zip(*map(ciders, curves), strict=False)]
        family = curves[0].trial.family
        targets[family] = max(targets.get(family, 0.0), REACHED * max(average))
    return targets


def epochs_to_reach(curve: Sequence[float], target: float) -> float | None:
    """Epochs until the curve, 0 at the start and straight between epochs, reaches the target."""
    before = 0.0
    for number, score in enumerate(curve):
        if score >= target:
            return number + (target - before) / (score - before)
        before = score
    return None


def ciders(outcome: Outcome) -> list[float]:
    """Validation CIDEr of each epoch."""
    return [entry["cider"] for entry in outcome.epochs]


def best_cider(outcome: Outcome) -> float:
    """CIDEr of the best epoch: that of the checkpoint a run keeps."""
    return max(ciders(outcome))


def lowest_loss(outcome: Outcome) -> float:
    """The lowest validation loss of a trial, nats a token."""
    return min(entry["val_loss"] for entry in outcome.epochs)


def seconds_an_epoch(outcome: Outcome) -> float:
    """Mean time of an epoch, validation and all."""
    return outcome.epochs[-1]["seconds"] / len(outcome.epochs)


def table(found: Sequence[Row]) -> str:
    """One line a row."""
    return aligned(COLUMNS, [_cells(row) for row in found], _LEFT)


def pooled_table(outcomes: Sequence[Outcome]) -> str:
    """Each setting's paired differences over all panels of a family, then over all families."""
    lines = []
    families = list(dict.fromkeys(outcome.trial.family for outcome in outcomes))
    for chosen in [[family] for family in families] + [families] * (len(families) > 1):
        for setting in dict.fromkeys(outcome.trial.setting for outcome in outcomes):
            group = [
                o
                for o in outcomes
                if o.trial.setting == setting and o.trial.family in chosen and not o.diverged
            ]
            scores = _differences(group, outcomes, best_cider)
            if scores and {outcome.trial.family for outcome in group} == set(chosen):
                lines.append(
                    (
                        " + ".join(chosen),
                        setting,
                        group[0].trial.against,
                        difference(scores, 3),
                        difference(_differences(group, outcomes, lowest_loss), 3),
                        str(len(scores)),
                        str(sum(score > 0 for score in scores)),
                    )
                )
    head = ("panels of", "setting", "against", "CIDEr difference", "loss difference", "pairs")
    return aligned((*head, "CIDEr higher"), lines, _LEFT)


def write_trials(outcomes: Sequence[Outcome], path: Path) -> None:
    """A line for each trial: its settings and what it gave."""
    targets = plain_targets(outcomes)
    entries = []
    for outcome in outcomes:
        trial, scored = outcome.trial, bool(outcome.epochs)
        model, train = asdict(trial.config.model), asdict(trial.config.train)
        entries.append(
            {
                "panel": trial.panel,
                "setting": trial.setting,
                "against": trial.against,
                "seed": trial.seed,
                "data": Path(trial.config.folders[0]).name,
                **{name: model[name] for name in ("decoder", "hidden_dim", "dropout")},
                **{
                    name: train[name]
                    for name in (
                        "learning_rate", "epochs", "captions_per_image", "detach_prob",
                        "detach_attention", "label_smoothing", "average", "scheduled_sampling",
                        "attention_penalty", "mirror",
                    )
                },
                "cider_best": best_cider(outcome) if scored else None,
                "cider_last": outcome.epochs[-1]["cider"] if scored else None,
                "val_loss": lowest_loss(outcome) if scored else None,
                "epochs_to_95": epochs_to_reach(
                    ciders(outcome), targets.get(trial.family, math.nan)
                ),
                "diverged": outcome.diverged,
                "seconds_an_epoch": seconds_an_epoch(outcome) if scored else None,
                "cpu_seconds_an_epoch": outcome.cpu_seconds,
                "finished": outcome.machine["date"],
            }
        )  # fmt: skip
    write_csv(entries, path)


def write_epochs(outcomes: Sequence[Outcome], path: Path) -> None:
    """A line for each epoch of each trial."""
    entries = [
        {"panel": o.trial.panel, "setting": o.trial.setting, "seed": o.trial.seed, **entry}
        for o in outcomes
        for entry in o.epochs
    ]
    write_csv(entries, path)


def _differences(
    group: Sequence[Outcome], outcomes: Sequence[Outcome], figure: Callable[[Outcome], float]
) -> list[float]:
    """The figure of each less that of the same panel and seed at the setting it is held against."""
    others = {
        (o.trial.panel, o.trial.setting, o.trial.seed): figure(o)
        for o in outcomes
        if not o.diverged
    }
    pairs = [
        (figure(o), others.get((o.trial.panel, o.trial.against, o.trial.seed)))
        for o in group
        if o.trial.setting != o.trial.against
    ]
    return [value - other for value, other in pairs if other is not None]


def _cells(row: Row) -> tuple[str, ...]:
    reached = [epochs for epochs in row.epochs_to if epochs is not None]
    share = (
        "" if len(reached) == len(row.epochs_to) else f" ({len(reached)} of {len(row.epochs_to)})"
    )
    return (
        row.panel,
        row.setting,
        str(row.trials),
        _spread(row.best),
        _spread(row.last),
        _spread(row.val_loss),
        f"{fmean(reached):.1f}{share}" if reached else "never",
        str(row.diverged),
        f"{row.seconds:.1f}",
        f"{row.cpu_seconds:.1f}",
        difference(row.differences, 3) if row.differences else "-",
        difference(row.loss_differences, 3) if row.differences else "-",
        row.against if row.differences else "-",
    )


def _spread(figures: tuple[float, float]) -> str:
    return f"{figures[0]:.3f} ± {figures[1]:.3f}"
