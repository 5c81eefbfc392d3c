"""COCO's result and captions files: read with care, written as the server wants them."""

import json
from pathlib import Path

import pytest

from captioner.data.coco import (
    check_known,
    coco_image_id,
    read_references,
    read_results,
    server_file,
    write_results,
)
from captioner.errors import ConfigError, DataError


def saved(folder, document):
    path = folder / "file.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")
    return path


def entry(image, caption="a dog"):
    return {"image_id": image, "caption": caption}


def test_what_is_written_is_read_again(tmp_path):
    captions = {7: "a café\u2028by the sea", 3: "", "x.jpg": 'a "sign"'}
    write_results(captions, tmp_path / "new" / "results.json")
    assert read_results(tmp_path / "new" / "results.json") == captions


def test_references_are_all_captions_of_an_image_and_its_file_name(tmp_path):
    path = saved(
        tmp_path,
        {
            "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2}],
            "annotations": [entry(1, "a dog"), entry(2, "a cat"), entry(1, "the dog")],
        },
    )
    found = read_references(path)
    assert found.captions == {1: ["a dog", "the dog"], 2: ["a cat"]}
    assert found.files == {1: "one.jpg"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "is not JSON"),
        ({"annotations": []}, "it is not a COCO result file"),
        ([], "holds no captions"),
        ([entry(1), entry(2), entry(1)], "entry 2 is a second caption of image 1"),
        ([entry(1), {"image_id": 2}], 'entry 1: it lacks "image_id" or "caption"'),
        ([entry(1.5)], "image_id is 1.5"),
        ([entry(1, ["a", "dog"])], "the caption of image 1 is not text"),
    ],
)
def test_a_result_file_in_another_format_is_refused_with_the_place(tmp_path, document, said):
    with pytest.raises(DataError, match=said):
        read_results(saved(tmp_path, document))


@pytest.mark.parametrize("document", [[entry(1)], {"images": []}, {"annotations": {}}])
def test_a_captions_file_in_another_format_is_refused(tmp_path, document):
    with pytest.raises(DataError, match="it is not a COCO captions file"):
        read_references(saved(tmp_path, document))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*nowhere\.json"):
        read_results(tmp_path / "nowhere.json")


def test_images_without_references_are_counted_and_named():
    with pytest.raises(
        DataError, match=r"r\.json: 4 of 5 images have no references: 2, 3, 4, \.\.\."
    ):
        check_known(dict.fromkeys(range(1, 6), "a dog"), {1: []}, "r.json")
    with pytest.raises(DataError, match="numbers in one file and strings in the other"):
        check_known({"1": "a dog"}, {1: []}, "r.json")
    check_known({1: "a dog"}, {1: [], 2: []}, "r.json")


def test_the_servers_file_names_and_numbers():
    assert server_file("test2014", "h-detach") == "captions_test2014_h-detach_results.json"
    assert coco_image_id(Path("x/COCO_val2014_000000000042.jpg")) == 42
    assert coco_image_id(Path("000000581929.jpg")) == 581929
    with pytest.raises(ConfigError, match="val2014 and test2014"):
        server_file("val2017", "mine")
    with pytest.raises(ConfigError, match="may hold only letters"):
        server_file("val2014", "my model")
    with pytest.raises(DataError, match="not a COCO file name"):
        coco_image_id(Path("holiday_2014.jpg"))
