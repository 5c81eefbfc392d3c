"""Write how good a captioner is as one self-contained page of HTML."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html import escape
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean, median

from PIL import Image

from captioner.data.vocabulary import tokenize
from captioner.files import write_text
from captioner.metrics.scores import ImageId, Scores
from captioner.metrics.significance import Interval

PHOTOGRAPHS = 6  # shown of the best, of the median and of the worst
PHOTOGRAPH_SIDE, ATTENTION_SIDE = 320, 800  # pixels at most
BINS = 20  # of a histogram of scores
LONGEST = 25  # words; longer captions are counted together
EXPLAINED = {
    "BLEU-1": "share of the words that a reference has too; short captions pay",
    "BLEU-2": "the same with runs of up to two words",
    "BLEU-3": "the same with runs of up to three words",
    "BLEU-4": "the same with runs of up to four words",
    "METEOR": "words matched with the nearest reference, by stem and synonym too, and their order",
    "ROUGE-L": "the longest sequence of words in common with a reference",
    "CIDEr": "likeness to all references, rare words weighing more; 10 is the most, not 1",
    "SPICE": "things, properties and relations that a reference names too",
}
TELLING = ("CIDEr", "METEOR", "ROUGE-L", "BLEU-4", "SPICE")  # shown image by image


def write_report(
    path: Path,
    *,
    title: str,
    scores: Scores,
    intervals: Mapping[str, Interval],
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    pictures: Callable[[ImageId], Image.Image | None],
    attention: Callable[[ImageId], Image.Image | None] | None = None,
    training_captions: Collection[str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write an HTML page with scores, their distribution, photographs and statistics of words.

    `scores` are those of `captions`; a metric without an interval (95 %) is shown without.
    `pictures` and `attention` are asked for the images shown only, at most 3 * PHOTOGRAPHS; where
    they have None, the page does without. `training_captions` are `" ".join(tokenize(caption))` of
    every caption of the training split. `settings` are shown as they are. The page needs no other
    file. Raises DataError if it cannot be written.
    """
    images = list(captions)
    found = [tokenize(captions[image]) for image in images]
    written = [[tokenize(text) for text in references[image]] for image in images]
    page = [
        _head(title, len(images), settings or {}),
        _scores(scores, intervals),
        _distributions(scores),
        _photographs(scores, captions, references, pictures, attention),
        _words(found, written, training_captions),
        _lengths(images, found, written, scores),
        "</main></body></html>",
    ]
    write_text(path, "\n".join(page) + "\n")


def _head(title: str, images: int, settings: Mapping[str, str]) -> str:
    facts = {**settings, "images": f"{images:,}"}
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{STYLE}</style></head><body><main>
<h1>{escape(title)}</h1>
<dl class="facts">{_join("<div><dt>{}</dt><dd>{}</dd></div>", facts.items())}</dl>
<nav><a href="#scores">Scores</a> <a href="#distribution">Distribution</a>
<a href="#photographs">Photographs</a> <a href="#words">Words</a>
<a href="#length">Length</a></nav>"""


def _scores(scores: Scores, intervals: Mapping[str, Interval]) -> str:
    rows = []
    for name, value in scores.values.items():
        row = f"<th scope=row>{escape(name)}<small>{escape(EXPLAINED.get(name, ''))}</small></th>"
        row += f"<td>{value:.3f}</td>"
        if intervals:
            interval = intervals.get(name)
            row += f"<td>{f'{interval.low:.3f} to {interval.high:.3f}' if interval else ''}</td>"
        rows.append(f"<tr>{row}</tr>")
    header = "<th>metric</th><th>score</th>" + ("<th>95 % interval</th>" if intervals else "")
    table = f'<table class="scores"><tr>{header}</tr>{"".join(rows)}</table>'
    note = (
        "<p>The interval tells how far a score may move with other images of the same kind. It "
        "says nothing of another training.</p>"
    )
    return _section("scores", "Scores", table + (note if intervals else ""))


def _distributions(scores: Scores) -> str:
    charts = [
        _score_histogram(name, list(scores.per_image[name].values())) for name in _telling(scores)
    ]
    note = (
        "<p>Each image scored by itself. BLEU and METEOR of the whole, in the table above, are "
        "counted over all images together and are not these means.</p>"
    )
    content = f'{note}<div class="charts">{"".join(charts)}</div>'
    return _section("distribution", "Distribution", content)


def _telling(scores: Scores) -> list[str]:
    names = [name for name in TELLING if name in scores.per_image]
    return names or list(scores.per_image)[:1]


def _score_histogram(name: str, values: Sequence[float]) -> str:
    step = _nice(max(*values, 0.4) / 4)
    top = math.ceil(max(*values, 0.4) / step - 1e-9) * step
    places = Counter(min(int(value / top * BINS), BINS - 1) for value in values)
    edges = [top * place / BINS for place in range(BINS + 1)]
    slots = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    marks = range(round(top / step) + 1)
    mean = fmean(values)
    most = max(places, key=lambda place: places[place])
    summary = f"{name} of {len(values):,} images: mean {mean:.3f}, median {median(values):.3f}"
    return _chart(
        {name: [places[place] for place in range(BINS)]},
        slots,
        ticks=[(mark * step / top * BINS, f"{mark * step:g}") for mark in marks],
        axes=(name, "images"),
        summary=summary,
        alt=f"Histogram. {summary}; most often {slots[most]}.",
        mean=mean / top * BINS,
    )


def _photographs(
    scores: Scores,
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    pictures: Callable[[ImageId], Image.Image | None],
    attention: Callable[[ImageId], Image.Image | None] | None,
) -> str:
    names = _telling(scores)
    judge = names[0]
    judged = scores.per_image[judge]
    order = sorted(judged, key=lambda image: -judged[image])
    count = max(1, min(PHOTOGRAPHS, len(order) // 3))
    middle = (len(order) - count) // 2
    groups = {
        "Best": order[:count],
        "Median": order[middle : middle + count] if len(order) > 2 else [],
        "Worst": order[count:][: -count - 1 : -1],
    }

    def card(image: ImageId) -> str:
        photograph = pictures(image)
        looked = attention(image) if attention else None
        values = ", ".join(f"{name} {scores.per_image[name][image]:.3f}" for name in names)
        parts = [
            _picture(photograph, PHOTOGRAPH_SIDE, f"photograph {image}") if photograph else "",
            f'<p class="caption">{escape(captions[image]) or "(no words)"}</p>',
            f"<ul>{_join('<li>{}</li>', ([text] for text in references[image]))}</ul>",
            f'<p class="soft">{escape(f"image {image}: {values}")}</p>',
        ]
        if looked:
            sheet = _picture(looked, ATTENTION_SIDE, f"where each word looked in image {image}")
            parts.append(
                f"<details><summary>where each word looked</summary>"
                f'<div class="wide">{sheet}</div></details>'
            )
        return f"<article>{''.join(parts)}</article>"

    shown = [
        f'<h3>{name} by {escape(judge)}</h3><div class="cards">{"".join(map(card, group))}</div>'
        for name, group in groups.items()
        if group
    ]
    note = "<p>The caption in bold, what people wrote below it.</p>"
    return _section("photographs", "Photographs", note + "".join(shown))


def _words(
    found: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    training_captions: Collection[str] | None,
) -> str:
    both = found, [own[0] for own in references]  # as many captions of people, to compare with
    rows = [
        ("words a caption, mean", *(f"{fmean(map(len, own)):.1f}" for own in both)),
        ("distinct words", *(f"{len(set(chain(*own))):,}" for own in both)),
        ("distinct captions", *(_share(len(set(map(tuple, own))), len(own)) for own in both)),
    ]
    if training_captions is not None:
        seen = frozenset(training_captions)
        new = [sum(" ".join(words) not in seen for words in own) for own in both]
        rows.append(("captions never seen in training", *(_share(n, len(found)) for n in new)))
    used = Counter(chain(*found))
    known = Counter(chain(*chain(*references)))
    missing = Counter({word: count for word, count in known.items() if word not in used})
    often = Counter(" ".join(words) for words in found)
    repeated = Counter({caption: count for caption, count in often.items() if count > 1})
    parts = [
        _table(("", "generated", "first reference of each image"), rows),
        f"<p>Of the {len(known):,} words in all references, {_share(len(missing), len(known))} are "
        f"in no generated caption; they are {_share(missing.total(), known.total())} of the "
        "references' text.</p>",
        _ranking("Most frequent words", used, 30),
        _ranking("Most frequent words of the references that are never generated", missing, 30),
        _ranking("Captions generated more than once", repeated, 10),
    ]
    return _section("words", "Words", "".join(parts))


def _lengths(
    images: Sequence[ImageId],
    found: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    scores: Scores,
) -> str:
    lengths = {"generated": list(map(len, found)), "references": list(map(len, chain(*references)))}
    every = sorted(min(length, LONGEST) for length in chain(*lengths.values()))
    slots = range(every[0], every[-1] + 1)
    shares = {
        name: [100 * sum(min(n, LONGEST) == slot for n in own) / len(own) for slot in slots]
        for name, own in lengths.items()
    }
    means = [f"{name} {fmean(own):.1f}" for name, own in lengths.items()]
    summary = f"Words a caption, mean: {', '.join(means)}"
    more = f" ({LONGEST} and more together)" if slots[-1] == LONGEST else ""
    ticks = slots[:: 2 if len(slots) > 12 else 1]
    chart = _chart(
        shares,
        [f"{slot} words" for slot in slots],
        ticks=[(slot - slots[0] + 0.5, f"{slot}") for slot in ticks],
        axes=(f"words{more}", "% of captions"),
        summary=summary,
        alt=f"Histogram of lengths. {summary}.",
    )
    grouped = defaultdict(list)
    for image, words in zip(images, found, strict=True):
        grouped[len(words)].append(image)
    metrics = _telling(scores)[:2]
    rows = [
        (
            n,
            f"{len(own):,}",
            *(f"{fmean(scores.per_image[m][i] for i in own):.3f}" for m in metrics),
        )
        for n, own in sorted(grouped.items())
    ]
    table = _table(("words", "captions", *(f"mean {name}" for name in metrics)), rows)
    return _section("length", "Length", f'<div class="charts">{chart}<div>{table}</div></div>')


def _chart(
    bars: Mapping[str, Sequence[float]],
    slots: Sequence[str],
    *,
    ticks: Sequence[tuple[float, str]],
    axes: tuple[str, str],
    summary: str,
    alt: str,
    mean: float | None = None,
) -> str:
    """Bars side by side in each slot, as SVG; ticks and mean are counted in slots from the left."""
    left, right, top, bottom = 44, 344, 22, 170
    wide, thick = (right - left) / len(slots), (right - left) / len(slots) * 0.86 / len(bars)
    step = max(1, _nice(max(map(max, bars.values())) / 4))
    highest = step * math.ceil(max(map(max, bars.values())) / step - 1e-9)
    scale = (bottom - top) / highest
    parts = []
    for number in range(round(highest / step) + 1):
        y = bottom - number * step * scale
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" class="end">{number * step:g}</text>')
    for series, (name, heights) in enumerate(bars.items()):
        for place, height in enumerate(heights):
            x = left + place * wide + wide * 0.07 + series * thick
            shape = f'width="{thick:.1f}" height="{height * scale:.1f}" class="bar{series}"'
            parts.append(
                f'<rect x="{x:.1f}" y="{bottom - height * scale:.1f}" {shape}>'
                f"<title>{escape(f'{slots[place]}: {height:.3g} {axes[1]}, {name}')}</title></rect>"
            )
    for where, text in ticks:
        parts.append(f'<text x="{left + where * wide:.1f}" y="{bottom + 15}">{escape(text)}</text>')
    if mean is not None:
        x = left + mean * wide
        parts.append(f'<path class="mean" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{max(x, left + 20):.1f}" y="{top - 4}">mean</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 32}">{escape(axes[0])}</text>')
    parts.append(f'<text x="2" y="11" class="start">{escape(axes[1])}</text>')
    key = "".join(
        f'<span class="key"><i class="bar{series}"></i>{escape(name)}</span>'
        for series, name in enumerate(bars)
    )
    return (
        f'<figure><svg viewBox="0 0 360 206" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg><figcaption>{key if len(bars) > 1 else ''}{escape(summary)}"
        "</figcaption></figure>"
    )


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 and 10 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= step * (1 - 1e-9))


def _picture(image: Image.Image, side: int, alt: str) -> str:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    data = base64.b64encode(encoded.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(alt)}">'


def _ranking(title: str, counts: Counter[str], most: int) -> str:
    if not counts:
        return ""
    items = ((word or "(no words)", f"{count:,}") for word, count in counts.most_common(most))
    return f'<h3>{title}</h3><ul class="ranking">{_join("<li>{} <b>{}</b></li>", items)}</ul>'


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    cells = "<tr><th scope=row>{}</th>" + "<td>{}</td>" * (len(header) - 1) + "</tr>"
    titles = _join("<th>{}</th>", ([title] for title in header))
    return f"<table><tr>{titles}</tr>{_join(cells, rows)}</table>"


def _share(count: int, whole: int) -> str:
    return f"{100 * count / max(whole, 1):.0f} %"


def _join(form: str, rows: Iterable[Sequence[object]]) -> str:
    """Fill a row of HTML with each of `rows`, escaped."""
    return "".join(form.format(*(escape(str(value)) for value in row)) for row in rows)


STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1d1d1b; --soft: #5e5d57;
  --line: #dcdbd5; --bar0: #2a78d6; --bar1: #d9601f; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #20201e; --ink: #eeede8;
  --soft: #aaa9a1; --line: #3b3a37; --bar0: #5a9bea; --bar1: #e5824c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: auto; padding: 24px 16px 64px; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 12px; }
h2 { font-size: 1.3rem; margin: 40px 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p { margin: 0 0 8px; }
a { color: var(--bar0); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 16px; }
small, dt, figcaption, .soft { color: var(--soft); font-size: .85rem; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0; }
.facts dd { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 0 5px 14px; border-bottom: 1px solid var(--line); vertical-align: top;
  text-align: right; font-weight: normal; overflow-wrap: normal; }
th:first-child { text-align: left; padding-left: 0; }
table + p { margin-top: 12px; }
tr:first-child th { color: var(--soft); font-size: .85rem; }
th small { display: block; }
.scores th:first-child { width: 30rem; }
.scores td { white-space: nowrap; }
.charts, .cards { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); }
figure { margin: 0; }
svg { display: block; width: 100%; max-width: 520px; }
svg text { fill: var(--soft); font-size: 12px; text-anchor: middle; }
@media (min-width: 800px) { svg text { font-size: 9.5px; } }
svg .end { text-anchor: end; }
svg .start { text-anchor: start; }
.grid { stroke: var(--line); }
.mean { stroke: var(--ink); stroke-dasharray: 4 3; }
.bar0 { fill: var(--bar0); background: var(--bar0); }
.bar1 { fill: var(--bar1); background: var(--bar1); }
.key { margin-right: 12px; }
.key i { display: inline-block; width: 10px; height: 10px; margin-right: 5px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px; }
article:has(details[open]) { grid-column: 1 / -1; }
article > img { display: block; width: 100%; max-width: 400px; height: auto; aspect-ratio: 4 / 3;
  object-fit: contain; background: var(--page); }
article ul { margin: 0 0 8px; padding-left: 18px; font-size: .9rem; }
.caption { font-weight: 600; margin: 8px 0 4px; }
.wide { overflow-x: auto; }
.wide img { display: block; width: 100%; min-width: 560px; max-width: 800px; height: auto; }
.ranking { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 0; padding: 0; }
.ranking b { color: var(--soft); font-weight: normal; font-size: .85rem; }
"""
