"""The command line scores result files and checkpoints, and writes reports and server files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, CELLS, DIM, MODEL, make_data

from captioner.checkpoint import Checkpoint, save
from captioner.cli import main
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.model import make_decoder

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
DOG, CAT = "a dog runs through the snow", "a cat sleeps on the sofa"
REFERENCES = {
    number: [f"{a} {number}", f"the {b} {number} is there"]
    for number, (a, b) in enumerate([(DOG, "dog"), (CAT, "cat")] * 15)
}


@pytest.fixture
def files(tmp_path):
    """Write good and bad result files and the captions file of 30 images."""

    def write(name, document):
        (tmp_path / name).write_text(json.dumps(document))
        return str(tmp_path / name)

    def results(name, captions):
        return write(name, [{"image_id": k, "caption": v} for k, v in captions.items()])

    annotations = [
        {"image_id": k, "caption": text} for k, several in REFERENCES.items() for text in several
    ]
    good = {k: several[0] for k, several in REFERENCES.items() if k < 20}
    return {
        "references": write("captions.json", {"annotations": annotations, "images": []}),
        "good": results("good.json", good),
        "again": results("again.json", dict(reversed(good.items()))),
        "bad": results("bad.json", dict.fromkeys(good, "a man on a horse")),
        "fewer": results("fewer.json", {0: DOG}),
        "strangers": results("strangers.json", {0: DOG, 77: DOG}),
    }


def run(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_result_file_is_scored_with_intervals_and_its_images_are_counted(files, capsys, tmp_path):
    common = ["score", files["good"], "--references", files["references"]]
    page = tmp_path / "report.html"
    out = run(capsys, *common, "--metrics", "BLEU-1", "CIDEr", "--report", page)
    lines = out.splitlines()
    assert lines[0].split() == ["score", "95%", "interval"]
    name, value, low, _, high = lines[1].split()
    assert (name, value) == ("BLEU-1", "1.000")
    assert float(low) <= float(value) <= float(high)
    assert lines[2].startswith("CIDEr")
    assert lines[3].startswith(f"20 of 30 images of {files['references']}, in ")
    assert lines[4] == f"report: {page}"
    assert "good.json" in page.read_text()
    document = json.loads(run(capsys, *common, "--metrics", "BLEU-1", "--json"))
    assert document["images"] == 20
    assert document["scores"]["BLEU-1"] == pytest.approx(1)
    assert document["intervals"]["BLEU-1"] == pytest.approx([1, 1])


@pytest.mark.slow
def test_a_score_that_can_only_be_0_comes_with_the_reason(files, capsys):
    common = ["score", files["fewer"], "--references", files["references"], "--metrics", "CIDEr"]
    assert "CIDEr: 0, as for any single image" in run(capsys, *common)
    (note,) = json.loads(run(capsys, *common, "--json"))["notes"]
    assert "score several images together" in note
    both = ["score", files["fewer"], files["fewer"], *common[2:]]
    assert run(capsys, *both).count("CIDEr: 0, as for any single image") == 2


@pytest.mark.slow
def test_of_two_result_files_the_better_one_is_named_and_equal_ones_do_not_differ(files, capsys):
    common = ["--references", files["references"], "--metrics", "ROUGE-L"]
    out = run(capsys, "score", files["bad"], files["good"], *common)
    heading, line, images = out.splitlines()
    assert heading.split()[:2] == ["bad.json", "good.json"]
    assert line.endswith("good.json is better")
    assert images.startswith("20 of 30 images")
    out = run(capsys, "score", files["good"], files["again"], *common)
    assert "+0.000" in out
    assert "1.000  no real difference" in out
    found = json.loads(run(capsys, "score", files["good"], files["bad"], *common, "--json"))
    assert [entry["results"] for entry in found["scores"]] == ["good.json", "bad.json"]
    difference = found["comparison"]["ROUGE-L"]["difference"]
    assert difference == found["scores"][0]["ROUGE-L"] - found["scores"][1]["ROUGE-L"]


@pytest.mark.parametrize(
    ("results", "options", "said"),
    [
        (["strangers"], [], "1 of 2 images have no references: 77"),
        (["good", "fewer"], [], "19 are in the first alone, 0 in the second alone"),
        (["good", "bad", "again"], [], "3 result files; give one, or two to compare"),
        (["good", "bad"], ["--report", "r.html"], "--report is of one result file"),
        (["good"], ["--metrics", "SPICE"], "SPICE needs a folder with stanford-corenlp"),
        (["good"], ["--metrics", "WER"], "invalid choice"),
        (["good"], ["--report", "/proc/r/r.html"], "cannot write"),
        (["references"], [], "it is not a COCO result file"),
    ],
)
def test_what_cannot_be_scored_is_one_line(files, results, options, said, capsys):
    given = [files[name] for name in results]
    assert main(["score", *given, "--references", files["references"], *options]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


@pytest.fixture
def checkpoint(tmp_path):
    """Save a checkpoint with random weights for the tiny data."""
    words = Vocabulary.build(CAPTIONS, 1)
    torch.manual_seed(0)
    decoder = make_decoder(MODEL, len(words), DIM).eval()
    encoder = EncoderConfig("efficientnet_lite0")
    made = Checkpoint(
        decoder, MODEL, encoder, DecodeConfig(beam_size=2, max_words=6), words, DIM, int(CELLS**0.5)
    )
    save(made, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.slow
def test_an_evaluation_has_intervals_a_report_with_attention_diversity_and_the_servers_name(
    checkpoint, tmp_path, capsys
):
    data, images = make_data(tmp_path / "data"), tmp_path / "images"
    images.mkdir()
    for number in range(6, 11):  # of 6..11: one is missing
        Image.new("RGB", (40, 30), (10 * number, 0, 0)).save(images / f"{number}.jpg")
    options = ["--report", tmp_path / "r.html", "--images", images, "--diversity", "3"]
    options += ["--out", tmp_path / "out", "--server", "val2014", "tiny", "--metrics", "CIDEr"]
    out = run(capsys, "evaluate", checkpoint, "--data", data, "--split", "val", *options)
    assert out.startswith(" ")
    assert "CIDEr" in out
    assert "mBLEU-4" in out
    assert "6 images of val, beam 2" in out
    results = json.loads((tmp_path / "out" / "captions_val2014_tiny_results.json").read_text())
    assert [entry["image_id"] for entry in results] == list(range(6, 12))
    page = (tmp_path / "r.html").read_text()
    assert page.count("<details") == 5  # attention where there is an image
    for entry in results:
        assert entry["caption"] in page


@pytest.mark.slow
def test_an_evaluation_measures_whether_attention_lies_in_the_boxes(checkpoint, tmp_path, capsys):
    names = dict(enumerate(("person", "dog", "cat", "horse")))
    instances = {
        "images": [{"id": number, "width": 40, "height": 30} for number in range(6, 12)],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "annotations": [
            {"image_id": number, "category_id": category, "bbox": [0, 0, 40, 30]}
            for number in range(6, 12)
            for category in names
        ],
    }
    boxes = tmp_path / "instances.json"
    boxes.write_text(json.dumps(instances))
    common = ["evaluate", checkpoint, "--data", make_data(tmp_path / "data"), "--metrics", "BLEU-1"]
    found = json.loads(run(capsys, *common, "--boxes", boxes, "--json"))["pointing"]
    assert found["words"] >= 1
    assert (found["peak"], found["inside"], found["centre"], found["uniform"]) == (1, 1, 1, 1)
    out = run(capsys, *common, "--boxes", boxes)
    assert "attention's peak in the named object's box: 1.000 (the image's centre: 1.000)" in out


def test_an_evaluation_that_cannot_be_scored_fails_before_the_work(checkpoint, tmp_path, capsys):
    data = make_data(tmp_path / "data")
    common = ["evaluate", str(checkpoint), "--data", str(data)]
    for options, said in (
        (["--metrics", "SPICE"], "SPICE needs a folder"),
        (["--diversity", "1"], "--diversity is 1"),
        (["--server", "val2014", "tiny"], "say in which folder"),
        (["--out", "o", "--server", "val2017", "tiny"], "server set 'val2017'"),
    ):
        assert main([*common, *options]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line


def test_captions_of_coco_images_become_a_file_for_the_server(tmp_path, capsys):
    images = tmp_path / "test2014"
    images.mkdir()
    for number in (42, 7):
        shutil.copy(
            CHECKPOINTS / "samples" / "chelsea.jpg", images / f"COCO_test2014_{number:012d}.jpg"
        )
    (images / "COCO_test2014_000000000008.jpg").write_bytes(b"not an image")
    arguments = ["caption", str(images), "--checkpoint", str(CHECKPOINTS / "coco_flickr8k")]
    arguments += ["--beam-size", "1"]
    arguments += ["--results", str(tmp_path / "out"), "--server", "test2014", "mine"]
    assert main(arguments) == 1  # for the file that is not an image
    captured = capsys.readouterr()
    caption = captured.out.splitlines()[0].partition(": ")[2]
    written = json.loads((tmp_path / "out" / "captions_test2014_mine_results.json").read_text())
    assert written == [{"image_id": 7, "caption": caption}, {"image_id": 42, "caption": caption}]
    (images / "holiday.jpg").write_bytes(b"")
    assert main(arguments) == 1
    assert "holiday.jpg: it is not a COCO file name" in capsys.readouterr().err
