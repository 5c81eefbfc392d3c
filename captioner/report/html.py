"""Write scores, captions and their statistics as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from captioner.data.vocabulary import tokenize
from captioner.files import write_text
from captioner.metrics.scores import ImageId, Scores
from captioner.metrics.significance import Interval
from captioner.report.charts import bar_chart, ticks

Words: TypeAlias = Sequence[str]  # of one caption
OpenImage: TypeAlias = Callable[[ImageId], Image.Image | None]
DrawAttention: TypeAlias = Callable[[ImageId, Image.Image], Image.Image | None]

SHOWN = 6  # images of the best, of the median and of the worst
IMAGE_SIDE, ATTENTION_SIDE = 320, 800  # pixels at most
BINS = 20  # of a histogram of scores
LONGEST = 25  # words; longer captions are counted together
EXPLAINED = {
    "BLEU-1": "share of words that are in a reference; short captions are penalised",
    "BLEU-2": "the same for sequences of up to two words",
    "BLEU-3": "the same for sequences of up to three words",
    "BLEU-4": "the same for sequences of up to four words",
    "METEOR": "words matched with the closest reference, also by stem and synonym, and their order",
    "ROUGE-L": "longest common subsequence with a reference",
    "CIDEr": "similarity to all references, rare words weighted more; 10 is the maximum, not 1",
    "SPICE": "objects, attributes and relations shared with the references",
}
PER_IMAGE = ("CIDEr", "METEOR", "ROUGE-L", "BLEU-4", "SPICE")  # metrics shown for each image

_TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
).get_template("page.html")


def write_report(
    path: Path,
    *,
    title: str,
    scores: Scores,
    intervals: Mapping[str, Interval],
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    images: OpenImage,
    attention: DrawAttention | None = None,
    training_captions: Collection[str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write an HTML page with scores, their distribution, images and word statistics.

    `scores` are those of `captions`. A metric without an interval (95%) is shown without one.
    `images` is called for at most 3 * SHOWN images, `attention` for those that it returned; where
    they return None, the page shows none. `training_captions` are `" ".join(tokenize(caption))` of
    every caption of the training split. `settings` are shown as they are. The page needs no other
    file. Raises DataError if it cannot be written.
    """
    generated = [tokenize(caption) for caption in captions.values()]
    written = [[tokenize(text) for text in references[image]] for image in captions]
    metrics = [name for name in PER_IMAGE if name in scores.per_image]
    metrics = metrics or list(scores.per_image)[:1]
    per_image = {name: scores.per_image[name] for name in metrics}
    page = _TEMPLATE.render(
        title=title,
        facts={**(settings or {}), "images": f"{len(captions):,}"},
        scores=scores.values,
        intervals=intervals,
        explained=defaultdict(str, EXPLAINED),
        histograms=[_histogram(name, list(own.values())) for name, own in per_image.items()],
        judge=metrics[0],
        groups={
            name: [_card(i, captions, references, per_image, images, attention) for i in group]
            for name, group in _extremes(per_image[metrics[0]]).items()
        },
        words=_words(generated, written, training_captions),
        lengths=_lengths(generated, list(chain(*written))),
        length_header=("words", "captions", *(f"mean {name}" for name in metrics[:2])),
        length_rows=_scores_by_length(
            dict(zip(captions, map(len, generated), strict=True)),
            [per_image[name] for name in metrics[:2]],
        ),
    )
    write_text(path, page + "\n")


@dataclass(frozen=True)
class _Chart:
    """A bar chart with the text below it."""

    svg: str
    series: Sequence[str]
    summary: str


@dataclass(frozen=True)
class _Jpeg:
    """An image as a page holds it."""

    data: str  # base64
    width: int
    height: int


def _jpeg(image: Image.Image, side: int) -> _Jpeg:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return _Jpeg(base64.b64encode(file.getvalue()).decode(), small.width, small.height)


def _histogram(metric: str, values: Sequence[float]) -> _Chart:
    marks = ticks(max(*values, 0.4))
    top = marks[-1]
    counts = Counter(min(int(value / top * BINS), BINS - 1) for value in values)
    edges = [top * place / BINS for place in range(BINS + 1)]
    slots = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    mean = fmean(values)
    summary = f"{metric} of {len(values):,} images: mean {mean:.3f}, median {median(values):.3f}"
    ((most, _),) = counts.most_common(1)
    svg = bar_chart(
        {metric: [counts[place] for place in range(BINS)]},
        slots,
        labels={mark / top * BINS: f"{mark:g}" for mark in marks},
        axes=(metric, "images"),
        summary=f"Histogram. {summary}; most often {slots[most]}.",
        mean=mean / top * BINS,
    )
    return _Chart(svg, [metric], summary)


def _extremes(scores: Mapping[ImageId, float]) -> dict[str, list[ImageId]]:
    """Return the images with the best, median and worst scores, none of them twice."""
    order = sorted(scores, key=lambda image: -scores[image])
    count = max(1, min(SHOWN, len(order) // 3))
    middle = (len(order) - count) // 2
    groups = {
        "Best": order[:count],
        "Median": order[middle : middle + count] if len(order) > 2 else [],
        "Worst": order[count:][: -count - 1 : -1],
    }
    return {name: group for name, group in groups.items() if group}


def _card(
    image_id: ImageId,
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    per_image: Mapping[str, Mapping[ImageId, float]],
    images: OpenImage,
    attention: DrawAttention | None,
) -> dict[str, Any]:
    """Return what the page shows of one image."""
    image = images(image_id)
    sheet = attention(image_id, image) if attention and image else None
    return {
        "image": image_id,
        "caption": captions[image_id],
        "references": references[image_id],
        "scores": ", ".join(f"{name} {own[image_id]:.3f}" for name, own in per_image.items()),
        "jpeg": _jpeg(image, IMAGE_SIDE) if image else None,
        "attention": _jpeg(sheet, ATTENTION_SIDE) if sheet else None,
    }


def _words(
    generated: Sequence[Words],
    references: Sequence[Sequence[Words]],
    training_captions: Collection[str] | None,
) -> dict[str, Any]:
    """Return the word statistics of the generated captions, beside those of the references."""
    both = generated, [own[0] for own in references]  # as many captions of people
    rows = [
        ("words per caption, mean", *(f"{fmean(map(len, own)):.1f}" for own in both)),
        ("distinct words", *(f"{len(set(chain(*own))):,}" for own in both)),
        ("distinct captions", *(_share(len(set(map(tuple, own))), len(own)) for own in both)),
    ]
    if training_captions is not None:
        known = frozenset(training_captions)
        new = [sum(" ".join(words) not in known for words in own) for own in both]
        rows.append(("captions never seen in training", *(_share(n, len(generated)) for n in new)))
    used = Counter(chain(*generated))
    of_references = Counter(chain(*chain(*references)))
    missing = Counter({word: n for word, n in of_references.items() if word not in used})
    captions = Counter(" ".join(words) for words in generated)
    repeated = Counter({caption: n for caption, n in captions.items() if n > 1})
    return {
        "rows": rows,
        "known": f"{len(of_references):,}",
        "missing": _share(len(missing), len(of_references)),
        "missing_text": _share(missing.total(), of_references.total()),
        "used": used.most_common(30),
        "never_used": missing.most_common(30),
        "repeated": repeated.most_common(10),
    }


def _lengths(generated: Sequence[Words], references: Sequence[Words]) -> _Chart:
    """Return the histogram of the lengths of captions."""
    lengths = {"generated": list(map(len, generated)), "references": list(map(len, references))}
    every = sorted(min(length, LONGEST) for length in chain(*lengths.values()))
    slots = range(every[0], every[-1] + 1)
    shares = {
        name: [100 * sum(min(n, LONGEST) == slot for n in own) / len(own) for slot in slots]
        for name, own in lengths.items()
    }
    means = [f"{name} {fmean(own):.1f}" for name, own in lengths.items()]
    summary = f"Words per caption, mean: {', '.join(means)}"
    more = f" ({LONGEST} and more together)" if slots[-1] == LONGEST else ""
    labelled = slots[:: 2 if len(slots) > 12 else 1]
    svg = bar_chart(
        shares,
        [f"{slot} words" for slot in slots],
        labels={slot - slots[0] + 0.5: f"{slot}" for slot in labelled},
        axes=(f"words{more}", "% of captions"),
        summary=f"Histogram of lengths. {summary}.",
    )
    return _Chart(svg, list(lengths), summary)


def _scores_by_length(
    lengths: Mapping[ImageId, int], scores: Sequence[Mapping[ImageId, float]]
) -> Iterable[Sequence[str]]:
    """Yield each length with its number of captions and their mean scores."""
    grouped = defaultdict(list)
    for image, length in lengths.items():
        grouped[length].append(image)
    for length, images in sorted(grouped.items()):
        means = (f"{fmean(own[image] for image in images):.3f}" for own in scores)
        yield f"{length}", f"{len(images):,}", *means


def _share(count: int, whole: int) -> str:
    return f"{100 * count / max(whole, 1):.0f}%"
