"""Captions that several tests of the metrics share."""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

TEST_DATA = Path(
    os.environ.get("CAPTIONER_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
COCO = TEST_DATA / "coco_mini" / "annotations" / "captions_val2017.json"

CANDIDATES = {
    "surf": "a man riding a wave on a surfboard",
    "cat": "A black cat's tail hangs over the sofa.",
    "café": "two people sitting at a table in a café",
    "sign": 'a street sign that says "stop" (in red)',
    "pizza": "a pizza cut into 1 1/2 slices",
    "dog": "the dog the dog the dog",
}
REFERENCES = {
    "dog": ["A dog runs through the snow.", "The brown dog isn't on a leash!"],
    "surf": ["A man rides a wave on top of a surfboard.", "A surfer in a wet-suit; big waves..."],
    "cat": ["The cat lies on the couch", "A cat that sleeps -- tail down -- on a sofa", "."],
    "café": ["Three friends eat at a café in the U.S.", "A couple are dining outside \U0001f600"],
    "sign": ["A red 'STOP' sign [in the rain] at a corner", "A sign, red & white, near 5th/Main."],
    "pizza": ["Half of a pizza is left on the plate", "one and a half slices of pizza: $3.50"],
    "unused": ["A train at the station."],
}


def all_coco_captions():
    """Return the captions of COCO's validation images, by image id; skip the test without them."""
    if not COCO.exists():
        pytest.skip(f"no COCO captions at {COCO}; CAPTIONER_TEST_DATA names another data folder")
    captions = defaultdict(list)
    for annotation in json.loads(COCO.read_text("utf-8"))["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return captions


def coco_captions(images):
    """Return the first caption of some images as candidates, the other four as references."""
    chosen = list(all_coco_captions().items())[:images]
    return {key: own[0] for key, own in chosen}, {key: own[1:] for key, own in chosen}
