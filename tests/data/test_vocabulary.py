"""Captions become token ids and come back."""

from __future__ import annotations

import json

import pytest

from captioner.data.vocabulary import Vocabulary, characters, joined, lacks_spaces, tokenize
from captioner.errors import DataError
from captioner.tokens import BOS, EOS, PAD, SPECIAL, UNK

CAPTIONS = ["A dog runs.", "a dog sleeps", "A cat sleeps", "a bird"]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.build(CAPTIONS, min_count=2)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog, running!", ["a", "dog", "running"]),
        ("The man's t-shirt isn't red.", ["the", "man's", "t-shirt", "isn't", "red"]),
        ("  tabs\tand\nlines  ", ["tabs", "and", "lines"]),
        ("Café naïve über 日本", ["café", "naïve", "über", "日本"]),
        ("2 dogs & 3 cats", ["2", "dogs", "3", "cats"]),
        ("'quoted' -dash- it''s", ["quoted", "dash", "it", "s"]),
        ("...!? ", []),
        ("", []),
    ],
)
def test_a_caption_is_split_into_lower_case_words_without_punctuation(caption, words):
    assert tokenize(caption) == words


def test_a_word_is_the_same_in_each_unicode_form():
    assert tokenize("Cafe\u0301") == tokenize("Café") == ["café"]


@pytest.mark.parametrize(
    ("caption", "split"),
    [
        ("一只狗跑", "一 只 狗 跑"),
        ("穿T恤的man。笑", "穿 T 恤 的 man。 笑"),
        ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),
        ("a dog  runs", "a dog runs"),
        ("मैं", "मैं"),
        ("", ""),
    ],
)
def test_characters_of_scripts_without_spaces_become_words(caption, split):
    assert characters(caption) == split
    assert characters(split) == split


def test_joined_words_have_spaces_only_where_their_script_has_them():
    assert joined(["a", "dog", "runs"]) == "a dog runs"
    assert joined(["一", "只", "狗"]) == "一只狗"
    assert joined(["犬", "が", "走る"]) == "犬が走る"
    assert joined(["สุ", "นั", "ข"]) == "สุนัข"
    assert joined(["穿", "t", "恤"]) == "穿 t 恤"
    assert joined([]) == ""


@pytest.mark.parametrize(
    ("caption", "lacking"),
    [
        ("一只棕色的狗在雪地里跑", True),
        ("一只狗", True),
        ("一 只 棕色 的 狗 在 雪地 里 跑", False),
        ("白い犬が雪の中を走っています。", True),
        ("白い 犬 が 雪 の 中 を 走って います 。", False),
        ("สุนัขกำลังวิ่งอยู่บนหิมะ", True),
        ("สุนัข กำลัง วิ่ง อยู่ บน หิมะ", False),
        ("눈 속을 달리는 개", False),
        ("собака бежит по снегу", False),
        ("a man in front of a sign that says 出口", False),
        ("Donaudampfschifffahrtsgesellschaft", False),
    ],
)
def test_captions_without_spaces_between_words_are_recognised(caption, lacking):
    assert lacks_spaces([caption] * 3) == lacking
    assert not lacks_spaces([characters(caption)] * 3)


def test_words_are_ordered_by_frequency_and_then_by_letters(vocabulary):
    assert vocabulary.words == (*SPECIAL, "a", "dog", "sleeps")


def test_the_order_of_the_captions_does_not_matter(vocabulary):
    assert Vocabulary.build(reversed(CAPTIONS), min_count=2) == vocabulary


def test_words_rarer_than_min_count_are_unknown(vocabulary):
    assert vocabulary.encode("A cat sleeps") == [4, UNK, 6]


def test_a_caption_that_is_encoded_and_decoded_comes_back(vocabulary):
    assert vocabulary.decode(vocabulary.encode("The DOG sleeps!")) == ["<unk>", "dog", "sleeps"]


def test_decoding_stops_at_the_end_and_skips_padding(vocabulary):
    assert vocabulary.decode([BOS, 4, PAD, 5, EOS, 6, 6]) == ["a", "dog"]


def test_a_special_token_written_in_a_caption_is_an_ordinary_word(vocabulary):
    assert vocabulary.encode("<end> <pad>") == [UNK, UNK]


def test_no_captions_leave_the_special_tokens_alone():
    assert Vocabulary.build([], 1).words == SPECIAL


def test_a_saved_vocabulary_is_loaded_as_it_was(tmp_path):
    vocabulary = Vocabulary.build(["Ein Café über dem See", "日本"], 1)
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no vocabulary at .*words\.json"):
        Vocabulary.load(tmp_path / "words.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ('{"a": 1}', "does not hold a list of words"),
        ("[1, 2]", "does not hold a list of words"),
        (json.dumps(["a", "b"]), "not with <pad>"),
        ("[]", "not with <pad>"),
        (json.dumps([*SPECIAL, "dog", "dog"]), "holds 'dog' twice"),
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path, content, complaint):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(DataError, match=complaint):
        Vocabulary.load(path)


def test_a_vocabulary_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        Vocabulary.load(path)


def test_words_that_need_another_are_found_by_id(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode(vocabulary.bad_endings()) == ["a"]
    words = Vocabulary([*SPECIAL, "on", "dog", "with", "the"])
    assert words.decode(words.bad_endings()) == ["the", "with"]


def test_a_caption_in_chinese_is_written_without_spaces():
    import numpy as np

    from captioner.checkpoint import Checkpoint
    from captioner.config import DecodeConfig, EncoderConfig
    from captioner.model import make_decoder
    from captioner.model.encoder import Encoder
    from captioner.pipeline import Captioner
    from tests.tiny import MODEL

    encoder = EncoderConfig("efficientnet_lite0", weights="none", image_size=32)
    network = Encoder(encoder)
    words = Vocabulary.build([characters("一只狗在雪地里跑")], 1)
    decoder = make_decoder(MODEL, len(words), network.dim)
    decode = DecodeConfig(beam_size=2, max_words=6)
    model = Captioner(Checkpoint(decoder, MODEL, encoder, decode, words, network.dim, network.grid))
    captions = model.captions(np.zeros((32, 32, 3), np.uint8))
    assert max(len(caption.words) for caption in captions) > 1
    assert all(caption.text == "".join(caption.words) for caption in captions)
