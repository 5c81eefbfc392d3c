"""Draw bar charts as SVG for an HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SVG = "http://www.w3.org/2000/svg"
# Drawn colour -> the page's CSS variable, which follows the light or dark theme.
THEME = {
    "#2a78d6": "var(--bar0)",
    "#d9601f": "var(--bar1)",
    "#1d1d1b": "var(--ink)",
    "#5e5d57": "var(--soft)",
    "#dcdbd5": "var(--line)",
}
FIRST, SECOND, INK, SOFT, LINE = THEME
FONT_SIZE = 9.5


def ticks(highest: float, whole: bool = False) -> list[float]:
    """Return up to five round numbers from 0 to the first that is not below `highest`."""
    locator = MaxNLocator(4, steps=[1, 2, 5, 10], integer=whole)
    return [float(tick) for tick in locator.tick_values(0, highest)]


def bar_chart(
    bars: Mapping[str, Sequence[float]],
    slots: Sequence[str],
    *,
    labels: Mapping[float, str],
    axes: tuple[str, str],
    summary: str,
    mean: float | None = None,
) -> str:
    """Return up to two series of bars, side by side in each slot, as an SVG element.

    Positions are counted in slots from the left: the keys of `labels`, below the x axis, and the
    `mean`. `axes` are the names of the x and y axis. Each bar has a tooltip with its slot and its
    height. `summary` describes the chart to screen readers.
    """
    figure = Figure(figsize=(5, 2.9), layout="constrained")  # 360 x 209 units
    axis = figure.subplots()
    tooltips = {}
    width = 0.86 / len(bars)
    for series, (name, heights) in enumerate(bars.items()):
        places = [slot + 0.07 + (series + 0.5) * width for slot in range(len(slots))]
        drawn = axis.bar(places, heights, width, color=(FIRST, SECOND)[series])
        for slot, (bar, height) in enumerate(zip(drawn, heights, strict=True)):
            bar.set_gid(f"bar_{series}_{slot}")
            tooltips[f"bar_{series}_{slot}"] = f"{slots[slot]}: {height:.3g} {axes[1]}, {name}"
    levels = ticks(max(map(max, bars.values())), whole=True)
    axis.set(xlim=(0, len(slots)), ylim=(0, levels[-1]))
    axis.set_xlabel(axes[0], color=SOFT, fontsize=FONT_SIZE)
    axis.set_ylabel(axes[1], color=SOFT, fontsize=FONT_SIZE, labelpad=9)
    axis.set_xticks(list(labels), list(labels.values()))
    axis.set_yticks(levels, [f"{level:g}" for level in levels])
    axis.tick_params(length=0, labelsize=FONT_SIZE, labelcolor=SOFT, pad=5)
    axis.grid(axis="y", color=LINE, linewidth=1)
    axis.set_axisbelow(True)
    axis.set_frame_on(False)
    if mean is not None:
        axis.axvline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        where = axis.get_xaxis_transform()
        axis.text(mean, 1.02, "mean", transform=where, ha="center", color=SOFT, fontsize=FONT_SIZE)
    return _svg(figure, summary, tooltips)


def _svg(figure: Figure, summary: str, tooltips: Mapping[str, str]) -> str:
    """Return a figure as an SVG element with the text and colours of the page.

    Ids become classes without their numbers, because several charts share a page.
    """
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True)
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(file.getvalue())
    for name in ("metadata", "defs"):
        for element in root.findall(f"{{{SVG}}}{name}"):
            root.remove(element)
    for element in list(root.iter()):
        element.attrib.pop("clip-path", None)  # its shape was among the defs
        name = element.attrib.pop("id", "")
        if name:
            element.set("class", re.sub(r"[_.]\d.*", "", name).replace(".", "-"))
        if name in tooltips:
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = tooltips[name].replace(" %", "%")
            element.insert(0, title)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": summary}
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub("|".join(THEME), lambda color: THEME[color[0]], text)
