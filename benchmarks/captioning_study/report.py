"""Outcomes of the captioning study as tables, CSV files and plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.captioning_study.plan import BASE, PLAIN, Outcome
from benchmarks.reporting import difference, mean, mean_deviation, plot, table, write_csv
from benchmarks.trials import matched

REACHED = 0.95  # of the best plain score
_LEFT = ("panel", "panels of", "setting", "against")
_TRAIN = (
    "learning_rate", "epochs", "captions_per_image", "detach_prob", "detach_attention",
    "label_smoothing", "average", "scheduled_sampling", "attention_penalty", "mirror",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The trials of one setting; scores are those of trials that did not diverge.

    Means and sample deviations over seeds; NaN where there are no figures.
    """

    panel: str
    setting: str
    against: str
    trials: int
    diverged: int
    best: tuple[float, float]  # CIDEr of the best epoch
    last: tuple[float, float]  # CIDEr of the last epoch
    val_loss: tuple[float, float]  # lowest of a trial, nats per token
    epochs_to: Sequence[float | None]  # to REACHED of the best plain score; None: never
    seconds: float  # per epoch
    cpu_seconds: float  # per epoch, without Java
    differences: Sequence[float]  # of the best CIDEr, from `against` of the same seed
    loss_differences: Sequence[float]  # of the lowest validation loss


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row for each panel and setting, in order of appearance."""
    targets = plain_targets(outcomes)
    result = []
    for panel, setting in dict.fromkeys((o.trial.panel, o.trial.setting) for o in outcomes):
        all_of_it = [o for o in outcomes if (o.trial.panel, o.trial.setting) == (panel, setting)]
        group = [outcome for outcome in all_of_it if not outcome.diverged]
        target = targets.get(all_of_it[0].trial.family, math.nan)
        cpu_seconds = [o.cpu_seconds for o in group if not math.isnan(o.cpu_seconds)]
        result.append(
            Row(
                panel=panel,
                setting=setting,
                against=all_of_it[0].trial.against,
                trials=len(all_of_it),
                diverged=len(all_of_it) - len(group),
                best=mean_deviation([best_cider(outcome) for outcome in group]),
                last=mean_deviation([outcome.entries[-1]["cider"] for outcome in group]),
                val_loss=mean_deviation([lowest_loss(outcome) for outcome in group]),
                epochs_to=[epochs_to_reach(ciders(outcome), target) for outcome in group],
                seconds=mean([epoch_seconds(outcome) for outcome in group]),
                cpu_seconds=mean(cpu_seconds),
                differences=_differences(group, outcomes, best_cider),
                loss_differences=_differences(group, outcomes, lowest_loss),
            )
        )
    return result


def plain_targets(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return each family's target score: REACHED of the best of its plain mean curves."""
    targets: dict[str, float] = {}
    plain = [o for o in outcomes if o.trial.setting in (PLAIN, BASE) and not o.diverged]
    for panel in dict.fromkeys(outcome.trial.panel for outcome in plain):
        curves = [outcome for outcome in plain if outcome.trial.panel == panel]
        average = [fmean(epoch) for epoch in zip(*map(ciders, curves), strict=False)]
        family = curves[0].trial.family
        targets[family] = max(targets.get(family, 0.0), REACHED * max(average))
    return targets


def epochs_to_reach(curve: Sequence[float], target: float) -> float | None:
    """Return the epochs until the curve, 0 at the start and linear between, is at the target."""
    before = 0.0
    for number, score in enumerate(curve):
        if score >= target:
            return number + (target - before) / (score - before)
        before = score
    return None


def ciders(outcome: Outcome) -> list[float]:
    """Return the validation CIDEr of each epoch."""
    return [entry["cider"] for entry in outcome.entries]


def best_cider(outcome: Outcome) -> float:
    """Return the CIDEr of the best epoch: that of the checkpoint a run keeps."""
    return max(ciders(outcome))


def lowest_loss(outcome: Outcome) -> float:
    """Return the lowest validation loss of a trial, nats per token."""
    return min(entry["val_loss"] for entry in outcome.entries)


def epoch_seconds(outcome: Outcome) -> float:
    """Return the mean time of an epoch with its validation."""
    return outcome.entries[-1]["seconds"] / len(outcome.entries)


def rows_table(found: Sequence[Row]) -> str:
    """Write a line for each row."""
    return table([_cells(row) for row in found], _LEFT)


def pooled_table(outcomes: Sequence[Outcome]) -> str:
    """Write each setting's paired differences over the panels of a family, and over all."""
    lines = []
    families = list(dict.fromkeys(outcome.trial.family for outcome in outcomes))
    for chosen in [[family] for family in families] + [families] * (len(families) > 1):
        for setting in dict.fromkeys(outcome.trial.setting for outcome in outcomes):
            of_setting = [o for o in outcomes if o.trial.setting == setting and not o.diverged]
            group = [o for o in of_setting if o.trial.family in chosen]
            scores = _differences(group, outcomes, best_cider)
            if scores and {outcome.trial.family for outcome in group} == set(chosen):
                losses = _differences(group, outcomes, lowest_loss)
                lines.append(
                    {
                        "panels of": " + ".join(chosen),
                        "setting": setting,
                        "against": group[0].trial.against,
                        "CIDEr difference": difference(scores, 3),
                        "loss difference": difference(losses, 3),
                        "pairs": str(len(scores)),
                        "CIDEr higher": str(sum(score > 0 for score in scores)),
                    }
                )
    return table(lines, _LEFT)


def write_trials(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a line for each trial: its settings and its figures."""
    targets = plain_targets(outcomes)
    lines = []
    for outcome in outcomes:
        trial, scored = outcome.trial, bool(outcome.entries)
        model, train = asdict(trial.config.model), asdict(trial.config.train)
        target = targets.get(trial.family, math.nan)
        lines.append(
            {
                "panel": trial.panel,
                "setting": trial.setting,
                "against": trial.against,
                "seed": trial.seed,
                "data": Path(trial.config.folders[0]).name,
                **{name: model[name] for name in ("decoder", "hidden_dim", "dropout")},
                **{name: train[name] for name in _TRAIN},
                "cider_best": best_cider(outcome) if scored else None,
                "cider_last": outcome.entries[-1]["cider"] if scored else None,
                "val_loss": lowest_loss(outcome) if scored else None,
                "epochs_to_95": epochs_to_reach(ciders(outcome), target),
                "diverged": outcome.diverged,
                "seconds_an_epoch": epoch_seconds(outcome) if scored else None,
                "cpu_seconds_an_epoch": outcome.cpu_seconds,
                "finished": outcome.machine["date"],
            }
        )
    write_csv(lines, path)


def write_epochs(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a line for each epoch of each trial."""
    lines = [
        {"panel": o.trial.panel, "setting": o.trial.setting, "seed": o.trial.seed, **entry}
        for o in outcomes
        for entry in o.entries
    ]
    write_csv(lines, path)


def plot_curves(outcomes: Sequence[Outcome], note: str, path: Path) -> None:
    """Plot CIDEr over the epochs, a panel each: mean and sample deviation over seeds."""
    scored = [outcome for outcome in outcomes if not outcome.diverged]
    panels = list(dict.fromkeys(outcome.trial.panel for outcome in scored))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    size = (5 * columns, 0.6 + 3.4 * lines)
    with plot(path, note, size, (lines, columns), sharex=True, sharey=True) as grid:
        for axes, panel in zip([axes for line in grid for axes in line], panels, strict=False):
            of_panel = [outcome for outcome in scored if outcome.trial.panel == panel]
            for setting in dict.fromkeys(outcome.trial.setting for outcome in of_panel):
                curves = [ciders(o) for o in of_panel if o.trial.setting == setting]
                spread = [mean_deviation(epoch) for epoch in zip(*curves, strict=False)]
                numbers, means = range(1, len(spread) + 1), [m for m, _ in spread]
                style = "k-" if setting == PLAIN else "--" if "," in setting else "-"
                (line,) = axes.plot(numbers, means, style, marker=".", label=setting)
                widths = [0.0 if math.isnan(deviation) else deviation for _, deviation in spread]
                low = [m - width for m, width in zip(means, widths, strict=True)]
                high = [m + width for m, width in zip(means, widths, strict=True)]
                axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.12, lw=0)
            axes.set(title=panel, xlabel="epoch", ylabel="CIDEr of greedy validation captions")
            axes.label_outer()
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(fontsize=8)


def plot_differences(found: Sequence[Row], note: str, path: Path) -> None:
    """Plot each setting's paired differences: a dot for each seed, a bar for the mean."""
    compared = [row for row in found if row.differences]
    with plot(path, note, (8, 1 + 0.35 * max(len(compared), 2))) as ((axes,),):
        for y, row in enumerate(compared):
            axes.plot(row.differences, [y] * len(row.differences), "o", color="tab:blue", alpha=0.5)
            axes.plot([fmean(row.differences)], [y], "k|", markersize=14)
        axes.set_yticks(range(len(compared)), [row.setting for row in compared])
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel="difference of the best CIDEr from the recipe of the same seed")


def _differences(
    group: Sequence[Outcome], outcomes: Sequence[Outcome], figure: Callable[[Outcome], float]
) -> list[float]:
    """Return figures of a setting less those of its comparison, at the same panel and seed."""
    against = {o.trial.against for o in group if o.trial.against != o.trial.setting}
    others = [o for o in outcomes if o.trial.setting in against and not o.diverged]
    pairs = matched(group, others, lambda outcome: (outcome.trial.panel, outcome.trial.seed))
    return [figure(one) - figure(other) for one, other in pairs]


def _cells(row: Row) -> dict[str, str]:
    reached = [epochs for epochs in row.epochs_to if epochs is not None]
    share = f" ({len(reached)} of {len(row.epochs_to)})" if None in row.epochs_to else ""
    return {
        "panel": row.panel,
        "setting": row.setting,
        "trials": str(row.trials),
        "CIDEr best": _spread(row.best),
        "CIDEr last": _spread(row.last),
        "val loss": _spread(row.val_loss),
        "to 95 %": f"{fmean(reached):.1f}{share}" if reached else "never",
        "diverged": str(row.diverged),
        "s/epoch": f"{row.seconds:.1f}",
        "CPU s/epoch": f"{row.cpu_seconds:.1f}",
        "CIDEr difference": difference(row.differences, 3) if row.differences else "-",
        "loss difference": difference(row.loss_differences, 3) if row.differences else "-",
        "against": row.against if row.differences else "-",
    }


def _spread(figures: tuple[float, float]) -> str:
    return f"{figures[0]:.3f} ± {figures[1]:.3f}"
