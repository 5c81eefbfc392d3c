"""Captions to token ids and back."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import DataError

if TYPE_CHECKING:
    from nltk.tokenize import RegexpTokenizer

PAD, BOS, EOS, UNK = range(4)
UNWRITTEN = [PAD, BOS, UNK]  # what no caption is ever given; and none begins with EOS
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

# Words that want another after them. Each ends fewer than 0.3 % of the times that it is written in
# Flickr8k's training captions; "on", "by", "near" and "her" end more ("another dog looks on").
BAD_ENDINGS = (
    "a", "an", "the", "his", "its", "their",
    "in", "of", "with", "at", "to", "for", "from", "into", "onto", "under", "through", "across",
    "against", "between", "beside", "toward", "towards", "during",
    "and", "or", "but", "while", "as", "than", "whose",
    "is", "are", "was", "were", "be", "being", "has", "have",
)  # fmt: skip

# A word may hold apostrophes and hyphens inside it (dog's, t-shirt), as COCO's PTB tokens do.
_WORD = r"\w+(?:[-'’]\w+)*"  # noqa: RUF001

# Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, Chinese and
# Japanese.
_UNSPACED = (
    "\u0e01-\u0e4e\u0e80-\u0edf\u1000-\u109f\u1780-\u17d3\u3005-\u3007\u3041-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_SPACE_BETWEEN_UNSPACED = re.compile(f"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case words without punctuation."""
    return list(_tokenizer().tokenize(unicodedata.normalize("NFC", caption.lower())))


@cache
def _tokenizer() -> RegexpTokenizer:
    from nltk.tokenize import RegexpTokenizer  # slow to import, through pandas and scipy

    return RegexpTokenizer(_WORD)


def characters(caption: str) -> str:
    """Return a caption with spaces around each character of a script that has none between words.

    Marks stay with their character, words of other scripts stay whole.
    """
    parts: list[str] = []
    for character in caption:
        if unicodedata.category(character).startswith("M") and parts:
            parts[-1] = parts[-1].rstrip() + character + " " * parts[-1].endswith(" ")
        elif _UNSPACED_CHARACTER.match(character):
            parts.append(f" {character} ")
        else:
            parts.append(character)
    return " ".join("".join(parts).split())


def joined(words: Iterable[str]) -> str:
    """Return the text of words, with spaces where their scripts have some."""
    return _SPACE_BETWEEN_UNSPACED.sub("", " ".join(words))


def lacks_spaces(captions: Iterable[str]) -> bool:
    """Whether most of the words found in captions are whole phrases, for lack of spaces.

    A word of Chinese, Japanese, Thai, Lao, Khmer or Burmese has two to four characters on average.
    """
    found = words = size = phrases = 0
    for caption in captions:
        own = tokenize(caption)
        lengths = [len(_UNSPACED_CHARACTER.findall(word)) for word in own]
        unspaced = [length for length in lengths if length]
        found, words, size = found + len(own), words + len(unspaced), size + sum(unspaced)
        phrases += bool(unspaced)
    if 2 * words <= found:
        return False
    return size > 6 * words or (words < 1.5 * phrases and size > 2 * words)


class Vocabulary:
    """The words a decoder knows, in the order of their ids.

    The first four ids are PAD, BOS, EOS and UNK.
    """

    def __init__(self, words: Sequence[str]):
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise DataError(f"a vocabulary begins with {', '.join(SPECIAL)}; found {words[:4]}")
        if len(set(words)) != len(words):
            twice = next(word for word, count in Counter(words).items() if count > 1)
            raise DataError(f"the vocabulary holds {twice!r} twice")
        self.words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 5) -> Vocabulary:
        """Collect the words seen at least `min_count` times, most frequent first."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        return cls((*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word))))

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    __hash__ = None  # type: ignore[assignment]

    def bad_endings(self) -> list[int]:
        """Ids of the words with which a caption breaks off in the middle of a phrase."""
        return [self._ids[word] for word in BAD_ENDINGS if word in self._ids]

    def encode(self, caption: str) -> list[int]:
        """Token ids of a caption's words, unknown words as UNK, without BOS and EOS."""
        return [self._ids.get(word, UNK) for word in tokenize(caption)]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Words of token ids up to EOS, without PAD and BOS."""
        words = []
        for token in tokens:
            if token == EOS:
                break
            if token not in (PAD, BOS):
                words.append(self.words[token])
        return words

    def save(self, path: Path) -> None:
        """Write the words as a JSON list."""
        path.write_text(json.dumps(self.words, ensure_ascii=False, indent=0) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote; raises DataError if it is missing or not a list of words."""
        try:
            words = json.loads(path.read_text("utf-8"))
        except OSError:
            raise DataError(f"no vocabulary at {path}") from None
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{path} does not hold a list of words")
        return cls(words)
