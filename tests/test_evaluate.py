"""A checkpoint is evaluated on prepared data."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import CAPTIONS, CELLS, DIM, MODEL, make_data

from captioner.checkpoint import Checkpoint
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.fingerprint import fingerprint
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, DataError, MetricError
from captioner.evaluate import evaluate, sampled_captions
from captioner.model import make_decoder

WORDS = Vocabulary.build(CAPTIONS, 1)
BEAM = DecodeConfig(beam_size=2, max_words=6)


def untrained(encoder="efficientnet_lite0"):
    torch.manual_seed(0)
    decoder = make_decoder(MODEL, len(WORDS), DIM).eval()
    return Checkpoint(decoder, MODEL, EncoderConfig(encoder), BEAM, WORDS, DIM, int(CELLS**0.5))


@pytest.mark.slow
def test_every_image_of_the_split_is_captioned_and_written_as_a_coco_result_file(tmp_path):
    data, out = make_data(tmp_path / "data"), tmp_path / "results" / "val.json"
    result = evaluate(untrained(), data, "val", BEAM, metrics=("BLEU-1", "CIDEr"), results=out)
    written = json.loads(out.read_text())
    assert [entry["image_id"] for entry in written] == list(range(6, 12))
    assert {entry["image_id"]: entry["caption"] for entry in written} == result.captions
    assert list(result.scores.values) == ["BLEU-1", "CIDEr"]
    first = evaluate(untrained(), data, "val", BEAM, metrics=("BLEU-1",), limit=2)
    assert first.captions == {key: result.captions[key] for key in (6, 7)}


@pytest.mark.slow
def test_a_checkpoint_that_may_have_seen_the_split_comes_with_a_warning(tmp_path, caplog):
    data = make_data(tmp_path / "data")
    known = replace(untrained(), trained={"data": [fingerprint(data)]})
    evaluate(known, data, "val", BEAM, metrics=("BLEU-1",))
    assert not caplog.text
    entries = json.loads((data / "examples.json").read_text())
    entries[0]["split"], entries[-1]["split"] = entries[-1]["split"], entries[0]["split"]
    (data / "examples.json").write_text(json.dumps(entries))
    evaluate(known, data, "val", BEAM, metrics=("BLEU-1",))
    assert "trained on another split of the captions" in caplog.text


def test_captions_are_kept_when_they_cannot_be_scored(tmp_path, monkeypatch):
    data, out = make_data(tmp_path / "data"), tmp_path / "val.json"

    def stopped(*_):
        raise MetricError("METEOR stopped")

    monkeypatch.setattr("captioner.evaluate.score", stopped)
    with pytest.raises(MetricError, match="METEOR stopped"):
        evaluate(untrained(), data, "val", BEAM, results=out)
    assert len(json.loads(out.read_text())) == 6


def test_a_metric_that_cannot_be_computed_is_refused_before_captioning(tmp_path):
    data, out = make_data(tmp_path / "data"), tmp_path / "val.json"
    with pytest.raises(MetricError, match="no metric 'WER'"):
        evaluate(untrained(), data, "val", BEAM, metrics=("WER",), results=out)
    with pytest.raises(MetricError, match="SPICE needs a folder"):
        evaluate(untrained(), data, "val", BEAM, metrics=("SPICE",), results=out)
    assert not out.exists()


def test_whole_endings_follow_the_vocabulary_of_the_checkpoint_not_of_the_data(tmp_path):
    data = make_data(tmp_path / "data")
    turned = Vocabulary([*WORDS.words[:4], *reversed(WORDS.words[4:])])
    turned.save(data / "vocabulary.json")
    dataset = CaptionDataset(data, "val")
    ending = untrained()
    for word, bias in {"<end>": 50.0, "a": 40.0, "cat": 30.0}.items():
        ending.decoder.out.bias.data[WORDS.words.index(word)] = bias
    decode = replace(BEAM, beam_size=1, block_repeats=1)
    assert all(texts == ["a cat"] for texts in sampled_captions(ending, dataset, decode).values())
    free = replace(decode, whole_endings=False)
    assert all(texts == ["a"] for texts in sampled_captions(ending, dataset, free).values())


def test_features_of_another_encoder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="prepare the data with the checkpoint's encoder"):
        evaluate(untrained("resnet18"), make_data(tmp_path / "data"), "val", BEAM)


def test_a_missing_split_is_an_error_that_names_the_existing_ones(tmp_path):
    with pytest.raises(DataError, match="it has no split 'test'; choose from train, val"):
        evaluate(untrained(), make_data(tmp_path / "data"), "test", BEAM)
