"""The HTML report of a captioner's scores."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from captioner.errors import DataError
from captioner.metrics.scores import METRICS, SPICE, Scores
from captioner.metrics.significance import Interval
from captioner.report.html import SHOWN, write_report

VOID = {"meta", "img"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list = field(default_factory=list)  # elements and strings

    def all(self, tag="", **attributes):
        """Elements below this one, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                wanted = {name.rstrip("_"): value for name, value in attributes.items()}
                if tag in ("", child.tag) and wanted.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def rows(self):
        """Cells of a table, without the small print in them."""
        return [
            ["".join(c for c in cell.children if isinstance(c, str)) for cell in row.children]
            for row in self.all("tr")
        ]


def tooltips(chart):
    return [bar.all("title")[0].text for bar in chart.all("g", class_="bar")]


def corners(group):
    """Corners (x, y) of the path of a group."""
    numbers = map(float, re.findall(r"[\d.]+", group.all("path")[0].attributes["d"]))
    return list(zip(numbers, numbers, strict=True))


class Page(HTMLParser):
    """Builds the tree of a page whose elements are all closed, in their order."""

    def __init__(self, text):
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], "not every element is closed"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop().tag == tag

    def handle_data(self, data):
        if data.strip():
            self._open[-1].children.append(data)


def no_image(image_id):
    return None


def noise_image(image_id, size=(1000, 750)):
    noise = np.random.default_rng(image_id).integers(0, 256, (30, 40, 3), np.uint8)
    return Image.fromarray(noise).resize(size)


def make_scores(values, per_image):
    return Scores(values, per_image, sums={})


def attention_sheet(image_id, image):
    return noise_image(image_id, (1150, 800))


def scored(count, *metrics):
    """Scores of images 0, 1, ...: every metric rises with the image's number."""
    own = {image: (image + 1) / (count + 1) for image in range(count)}
    values = {name: 0.1234 + place / 7 for place, name in enumerate(metrics)}
    return make_scores(values, dict.fromkeys(metrics, own))


def report(tmp_path, count=30, metrics=("BLEU-4", "METEOR", "ROUGE-L", "CIDEr"), **given):
    """Write a page about `count` images and read it."""
    texts = {image: f"a dog number {image} runs" for image in range(count)}
    written = {image: [f"person {n} saw dog {image}" for n in "AB"] for image in range(count)}
    given = {
        "title": "A captioner",
        "scores": scored(count, *metrics),
        "intervals": {},
        "captions": texts,
        "references": written,
        "images": no_image,
    } | given
    path = tmp_path / "new" / "report.html"
    write_report(path, **given)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text("utf-8")).root


def section(page, name):
    return page.all("section", id=name)[0]


def cards(page):
    """Image number -> its card, in the order of the page."""
    found = section(page, "photographs").all("article")
    return {int(re.search(r"image (\d+):", card.text)[1]): card for card in found}


def test_the_page_needs_no_other_file(tmp_path):
    page = report(tmp_path, images=noise_image, attention=attention_sheet)
    assert not page.all("script") + page.all("link") + page.all("iframe")
    for element in page.all():
        for name in {"src", "href", "srcset", "data", "action"} & element.attributes.keys():
            assert element.attributes[name].startswith(("data:image/jpeg;base64,", "#"))
        assert not any(name.startswith("on") for name in element.attributes)
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text
    for link in page.all("a"):
        assert section(page, link.attributes["href"][1:])


def test_the_table_holds_the_scores_and_their_intervals(tmp_path):
    scores = make_scores(
        {"BLEU-4": 0.2114, "CIDEr": 0.5366}, scored(30, "BLEU-4", "CIDEr").per_image
    )
    page = report(tmp_path, scores=scores, intervals={"CIDEr": Interval(0.5011, 0.5719)})
    assert section(page, "scores").all("table")[0].rows() == [
        ["metric", "score", "95% interval"],
        ["BLEU-4", "0.211", ""],
        ["CIDEr", "0.537", "0.501 to 0.572"],
    ]
    without = report(tmp_path, scores=scores)
    assert section(without, "scores").all("tr")[0].text == "metricscore"


def test_every_metric_is_explained(tmp_path):
    metrics = (*METRICS, SPICE)
    rows = section(report(tmp_path, metrics=metrics), "scores").all("small")
    assert len(rows) == len(metrics)
    assert all(row.text for row in rows)


def test_title_settings_and_number_of_images_are_at_the_top(tmp_path):
    settings = {"checkpoint": "runs/a & b", "beam": "5"}
    page = report(tmp_path, title="Flickr8k <val>", settings=settings)
    assert page.all("title")[0].text == page.all("h1")[0].text == "Flickr8k <val>"
    facts = [(fact.children[0].text, fact.children[1].text) for fact in page.all("dl")[0].children]
    assert facts == [*settings.items(), ("images", "30")]


def test_best_median_and_worst_images_are_shown_with_their_captions(tmp_path):
    page = report(tmp_path)
    assert SHOWN == 6
    best, median, worst = range(29, 23, -1), range(17, 11, -1), range(6)
    assert list(cards(page)) == [*best, *median, *worst]
    for image, card in cards(page).items():
        assert f"a dog number {image} runs" in card.text
        assert [item.text for item in card.all("li")] == [
            f"person A saw dog {image}",
            f"person B saw dog {image}",
        ]
        assert f"CIDEr {(image + 1) / 31:.3f}" in card.text


def test_without_cider_the_next_metric_in_order_chooses_the_images(tmp_path):
    falling = {image: 30.0 - image for image in range(30)}
    rising = {image: float(image) for image in range(30)}
    scores = make_scores({"BLEU-1": 0.6, "ROUGE-L": 0.4}, {"BLEU-1": rising, "ROUGE-L": falling})
    page = report(tmp_path, scores=scores)
    assert list(cards(page))[:2] == [0, 1]
    assert "Best by ROUGE-L" in page.text
    assert "CIDEr" not in page.text.replace(page.all("style")[0].text, "")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 17])
def test_no_image_is_shown_twice_when_there_are_few(tmp_path, count):
    shown = section(report(tmp_path, count), "photographs").all("article")
    assert len(shown) == len({card.text for card in shown}) >= min(count, 3)


def test_one_image_makes_a_page(tmp_path):
    page = report(tmp_path, count=1, scores=make_scores({"CIDEr": 0.0}, {"CIDEr": {0: 0.0}}))
    assert list(cards(page)) == [0]
    assert "Median by" not in page.text
    assert "Worst by" not in page.text
    assert section(page, "length").all("table")[0].rows()[1:] == [["5", "1", "0.000"]]


def test_images_are_small_jpegs_and_opened_once_each_where_shown(tmp_path):
    opened, attended = [], []

    def images(image_id):
        opened.append(image_id)
        return noise_image(image_id).convert("RGBA") if image_id % 2 else None

    def attention(image_id, image):
        assert image.size == (1000, 750)
        attended.append(image_id)

    shown = cards(report(tmp_path, images=images, attention=attention))
    assert sorted(opened) == sorted(shown)
    assert sorted(attended) == sorted(image_id for image_id in shown if image_id % 2)
    for image_id, card in shown.items():
        assert len(card.all("img")) == image_id % 2
        for img in card.all("img"):
            data = base64.b64decode(img.attributes["src"].split(",")[1])
            assert Image.open(io.BytesIO(data)).size == (320, 240)
            assert img.attributes["alt"] == f"photograph {image_id}"


def test_attention_is_shown_where_there_is_some(tmp_path):
    def attention(image_id, image):
        return image if image_id == 29 else None

    shown = cards(report(tmp_path, images=noise_image, attention=attention))
    assert [image for image, card in shown.items() if card.all("details")] == [29]
    assert shown[29].all("details")[0].all("img")[0].attributes["alt"].endswith("image 29")


def test_a_page_of_images_and_attention_stays_under_three_megabytes(tmp_path):
    report(tmp_path, images=noise_image, attention=attention_sheet)
    assert (tmp_path / "new" / "report.html").stat().st_size < 3_000_000


def test_histograms_count_every_image_and_say_so(tmp_path):
    page = report(tmp_path, metrics=("BLEU-1", "BLEU-4", "CIDEr"))
    charts = section(page, "distribution").all("svg")
    assert [chart.attributes["aria-label"].split(" of ")[0] for chart in charts] == [
        "Histogram. CIDEr",
        "Histogram. BLEU-4",
    ]
    for chart in charts:
        assert "30 images: mean 0.500, median 0.500" in chart.attributes["aria-label"]
        tips = tooltips(chart)
        assert len(tips) == 20
        assert sum(float(tip.split(": ")[1].split(" ")[0]) for tip in tips) == 30


def test_a_bar_reaches_the_line_of_what_it_counts(tmp_path):
    own = dict(enumerate([0.05, 0.05, 0.05, 0.05, 0.95, 0.95]))
    page = report(tmp_path, count=6, scores=make_scores({"METEOR": 0.3}, {"METEOR": own}))
    chart = section(page, "distribution").all("svg")[0]
    line = {
        int(tick.all("text")[0].text): corners(tick)[0][1]
        for tick in chart.all("g", class_="ytick")
    }
    bars = [[y for _, y in corners(bar)] for bar in chart.all("g", class_="bar")]
    assert [place for place, ys in enumerate(bars) if max(ys) != min(ys)] == [1, 19]
    for place, count in ((0, 0), (1, 4), (19, 2)):
        assert min(bars[place]) == pytest.approx(line[count], abs=0.1)
        assert max(bars[place]) == pytest.approx(line[0], abs=0.1)


def test_the_mean_and_the_ticks_stand_where_their_values_are(tmp_path):
    own = dict(enumerate([0.0, 0.3, 0.9]))
    page = report(tmp_path, count=3, scores=make_scores({"METEOR": 0.3}, {"METEOR": own}))
    chart = section(page, "distribution").all("svg")[0]
    xs = {
        float(tick.all("text")[0].text): float(tick.all("text")[0].attributes["x"])
        for tick in chart.all("g", class_="xtick")
    }
    assert list(xs) == [0, 0.5, 1]
    (label,) = [text for text in chart.all("text") if text.text == "mean"]
    expected = xs[0] + 0.4 * (xs[1.0] - xs[0])
    assert float(label.attributes["x"]) == pytest.approx(expected, abs=0.1)


def test_charts_follow_the_theme_and_share_no_ids(tmp_path):
    page = report(tmp_path)
    for chart in page.all("svg"):
        assert not [element for element in chart.all() if "id" in element.attributes]
        styles = " ".join(element.attributes.get("style", "") for element in chart.all())
        assert "var(--bar0)" in styles
        assert not re.search(r"#[0-9a-f]{6}", styles)


def test_the_only_metric_asked_for_is_shown_whatever_it_is(tmp_path):
    page = report(tmp_path, metrics=("BLEU-2",))
    assert "Histogram. BLEU-2 of 30" in page.all("svg")[0].attributes["aria-label"]
    assert "Best by BLEU-2" in page.text
    assert section(page, "length").all("tr")[0].text == "wordscaptionsmean BLEU-2"


def test_text_in_captions_is_never_markup(tmp_path):
    evil = '<script>alert("x")</script> & <img src="http://example.com">'
    page = report(
        tmp_path,
        count=2,
        title=evil,
        settings={evil: evil},
        captions={0: evil, 1: evil},
        references={0: [evil], 1: [evil]},
        images=noise_image,
    )
    assert not page.all("script")
    assert len(page.all("img")) == 2
    assert evil in cards(page)[0].text


def test_the_identity_of_an_image_is_never_markup(tmp_path):
    name = '"><b>.jpg'
    page = report(
        tmp_path,
        scores=make_scores({"CIDEr": 0.0}, {"CIDEr": {name: 0.0}}),
        captions={name: "a \ud83d dog"},
        references={name: ["a dog"]},
        images=lambda image_id: noise_image(0),
    )
    assert page.all("img")[0].attributes["alt"] == f"photograph {name}"
    assert page.all("article")[0].text.endswith(f"image {name}: CIDEr 0.000")


def test_words_are_counted_against_as_many_captions_of_people(tmp_path):
    page = report(
        tmp_path,
        count=3,
        captions={0: "a dog runs", 1: "a dog runs", 2: "a cat"},
        references={0: ["A dog sits.", "two"], 1: ["One dog, outside!"], 2: ["A cat"]},
        training_captions=["a dog runs", "a dog sits"],
    )
    words = section(page, "words")
    assert words.all("table")[0].rows()[1:] == [
        ["words per caption, mean", "2.7", "2.7"],
        ["distinct words", "4", "6"],
        ["distinct captions", "67%", "100%"],
        ["captions never seen in training", "33%", "67%"],
    ]
    assert "Of the 7 words in all references, 57% are in no generated caption" in words.text
    assert "they make up 44% of the text of the references" in words.text
    often, missing, repeated = (ranking.text for ranking in words.all("ul"))
    assert often.startswith("a 3dog 2runs 2")
    assert {*re.findall(r"[a-z]+", missing)} == {"sits", "two", "one", "outside"}
    assert repeated == "a dog runs 2"


def test_scores_are_averaged_by_the_length_of_the_caption(tmp_path):
    own = {0: 1.0, 1: 2.0, 2: 6.0}
    page = report(
        tmp_path,
        count=3,
        captions={0: "", 1: "a dog runs", 2: "a dog sits"},
        scores=make_scores({"CIDEr": 3.0}, {"CIDEr": own}),
    )
    assert section(page, "length").all("table")[0].rows() == [
        ["words", "captions", "mean CIDEr"],
        ["0", "1", "1.000"],
        ["3", "2", "4.000"],
    ]
    assert "(no words)" in cards(page)[0].text


def test_very_long_captions_are_counted_together(tmp_path):
    page = report(tmp_path, count=1, captions={0: "dog " * 90})
    tips = tooltips(section(page, "length"))
    assert "25 words: 100% of captions, generated" in tips
    assert len(tips) < 50


@pytest.mark.parametrize("place", ["file/report.html", "folder"])
def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"cannot write .*{place}"):
        write_report(
            tmp_path / place,
            title="",
            scores=scored(1, "CIDEr"),
            intervals={},
            captions={0: "a dog"},
            references={0: ["a dog"]},
            images=no_image,
        )
