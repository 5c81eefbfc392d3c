"""Raw data sets of each kind become records; wrong files are refused with the place."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from captioner.errors import ConfigError, DataError
from data_prep import captions_file, coco, karpathy
from data_prep.records import WARNINGS, Record, held_out_note, hold_out


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


# --- Karpathy's files ------------------------------------------------------------------------


def karpathy_entry(**changed: object) -> dict[str, object]:
    entry = {
        "filepath": "val2014",
        "filename": "COCO_val2014_000000000042.jpg",
        "cocoid": 42,
        "split": "restval",
        "sentences": [{"raw": "A dog."}, {"raw": "Ein Café"}],
    }
    return {key: value for key, value in (entry | changed).items() if value is not None}


def test_a_karpathy_file_gives_paths_ids_splits_and_captions(tmp_path):
    path = write(tmp_path / "dataset_coco.json", {"images": [karpathy_entry()]})
    assert karpathy.read(path, Path("coco")) == [
        Record(
            key="val2014/COCO_val2014_000000000042.jpg",
            path=Path("coco/val2014/COCO_val2014_000000000042.jpg"),
            split="train",
            captions=("A dog.", "Ein Café"),
            image_id=42,
        )
    ]


def test_without_cocoid_a_karpathy_image_has_its_imgid(tmp_path):
    entry = karpathy_entry(cocoid=None, filepath=None, imgid=7, filename="a.jpg")
    (record,) = karpathy.read(write(tmp_path / "d.json", {"images": [entry]}), Path("i"))
    assert (record.image_id, record.key) == (7, "a.jpg")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"images": [karpathy_entry(filename=None)]}, "entry 0 of 'images' lacks 'filename'"),
        ({"images": [karpathy_entry(), {}]}, "entry 1 of 'images' lacks 'filename'"),
        ({"images": [karpathy_entry(sentences=[{}])]}, "lacks 'raw'"),
        ({"images": [karpathy_entry(sentences=5)]}, "entry 0 of 'images' is wrong"),
        ({"images": [karpathy_entry(cocoid="x")]}, "entry 0 of 'images' is wrong"),
        ({"images": ["a.jpg"]}, "entry 0 of 'images' is wrong"),
        ({"annotations": []}, "no list 'images'"),
        ([], "no list 'images'"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_wrong_karpathy_file_is_refused_with_the_entry(tmp_path, content, complaint):
    with pytest.raises(DataError, match=complaint):
        karpathy.read(write(tmp_path / "d.json", content), tmp_path)


def test_a_missing_captions_file_a_folder_and_one_that_is_not_text_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no file at .*nowhere\.json"):
        karpathy.read(tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(DataError, match="is a folder"):
        karpathy.read(tmp_path, tmp_path)
    (tmp_path / "latin1.json").write_bytes('{"images": "Café"}'.encode("latin1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        karpathy.read(tmp_path / "latin1.json", tmp_path)


# --- COCO's files ----------------------------------------------------------------------------


def coco_file(path: Path, *images: tuple[int, str], captions: int = 2) -> Path:
    return write(
        path,
        {
            "images": [{"id": number, "file_name": name} for number, name in images],
            "annotations": [
                {"image_id": number, "id": 10 * number + k, "caption": f"caption {k}"}
                for k in range(captions)
                for number, _ in images
            ],
        },
    )


@pytest.mark.parametrize(
    ("folder", "key"), [("coco", "train2017/1.png"), ("coco/train2017", "1.png")]
)
def test_coco_images_are_found_in_the_folder_or_below_its_parent(tmp_path, folder, key, paint):
    paint(tmp_path / "coco/train2017", "1.png")
    path = coco_file(tmp_path / "captions_train2017.json", (9, "1.png"))
    (record,) = coco.read([path], tmp_path / folder)
    assert (record.key, record.image_id, record.split) == (key, 9, "train")
    assert record.captions == ("caption 0", "caption 1")
    assert record.path.is_file()


@pytest.fixture
def two_coco_files(paint, tmp_path) -> list[Path]:
    paint(tmp_path, "train2017/1.png", "val2017/2.png")
    return [
        coco_file(tmp_path / "captions_train2017.json", (1, "1.png")),
        coco_file(tmp_path / "captions_val2017.json", (2, "2.png")),
    ]


def test_several_coco_files_have_the_splits_of_their_names(tmp_path, two_coco_files):
    found = coco.read(two_coco_files, tmp_path)
    assert [record.split for record in found] == ["train", "val"]


def test_a_single_coco_file_is_for_training_whatever_its_name(tmp_path, two_coco_files):
    (record,) = coco.read(two_coco_files[1:], tmp_path)
    assert record.split == "train"


def test_the_splits_of_coco_files_can_be_given(tmp_path, two_coco_files):
    found = coco.read(two_coco_files, tmp_path, ["test", "train"])
    assert [record.split for record in found] == ["test", "train"]
    with pytest.raises(ConfigError, match="1 names for 2 annotation files"):
        coco.read(two_coco_files, tmp_path, ["train"])


def test_coco_captions_of_an_image_that_is_not_listed_are_reported(tmp_path, caplog, paint):
    path = coco_file(tmp_path / "captions.json", (1, "1.png"), (2, "2.png"))
    content = json.loads(path.read_text())
    del content["images"][1]
    paint(tmp_path, "1.png")
    (record,) = coco.read([write(path, content)], tmp_path)
    assert record.image_id == 1
    assert "has captions of 1 images that it does not list" in caplog.text


def test_a_coco_file_none_of_whose_images_is_found_is_refused(tmp_path):
    path = coco_file(tmp_path / "captions_val2017.json", (1, "1.png"))
    with pytest.raises(DataError, match=r"_val2017\.json: none of its images is in .*--images"):
        coco.read([path], tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            {"images": [], "annotations": [{"image_id": 1, "bbox": []}]},
            "lacks 'caption'; give",
        ),
        ({"images": [{"id": 1}], "annotations": []}, "entry 0 of 'images' lacks 'file_name'"),
        ({"images": [{"id": "x", "file_name": "a"}], "annotations": []}, "'images' is wrong"),
        ({"images": [], "annotations": [3]}, "entry 0 of 'annotations' is wrong"),
        ({"images": []}, "no list 'annotations'"),
        ({"images": {}, "annotations": []}, "no list 'images'"),
        ([1], "no list 'annotations'"),
    ],
)
def test_a_wrong_coco_file_is_refused_with_the_entry(tmp_path, content, complaint):
    with pytest.raises(DataError, match=complaint):
        coco.read([write(tmp_path / "c.json", content)], tmp_path)


@pytest.mark.parametrize("images", [".", "train2017"])
def test_the_real_coco_images_are_read(shared_data, images):
    folder = shared_data / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"no images at {folder}")
    found = coco.read([folder / "annotations/captions_train2017.json"], folder / images)
    assert len(found) == 130
    first = next(record for record in found if record.image_id == 790)
    assert first.path.samefile(folder / "train2017/000000000790.jpg")
    assert "a family is sitting down at a table to have cake" in first.captions
    assert all(len(record.captions) >= 5 for record in found)


# --- files with a line for each caption ------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\na.jpg,A dog\nb.jpg,"A cat, asleep"\na.jpg,"The ""big"" dog"\n',
        '\ufeffimage,caption\r\na.jpg,A dog\r\nb.jpg,"A cat, asleep"\r\n'
        'a.jpg,"The ""big"" dog"\r\n',
        'a.jpg,A dog\n\nb.jpg,A cat, asleep\n"a.jpg","The ""big"" dog"',
        "caption,image\nA dog,a.jpg\n\"A cat, asleep\",b.jpg\n\"The \"\"big\"\" dog\",a.jpg\n",
        'a.jpg#0\tA dog\nb.jpg#0\tA cat, asleep\na.jpg#1\tThe "big" dog\n',
        'file_name\ttext\na.jpg\tA dog\nb.jpg\tA cat, asleep\na.jpg\tThe "big" dog\n',
        'image_name| comment_number| comment\na.jpg| 0| A dog\nb.jpg| 0| A cat, asleep\n'
        'a.jpg| 1| The "big" dog\n',
        '{"file_name": "a.jpg", "text": ["A dog", "The \\"big\\" dog"]}\n\n'
        '{"file_name": "b.jpg", "text": "A cat, asleep"}\n',
        '{"image": "a.jpg", "caption": "A dog", "more": 1}\n'
        '{"image": "b.jpg", "caption": "A cat, asleep"}\n'
        '{"image": "a.jpg", "caption": "The \\"big\\" dog"}',
    ],
    ids=["header", "bom", "bare", "swapped", "flickr", "tab", "flickr30k", "jsonl", "jsonl-split"],
)  # fmt: skip
def test_each_format_of_a_captions_file_gives_the_same_records(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_bytes(text.encode())
    first, second = captions_file.read(path, tmp_path)
    assert (first.key, first.image_id, first.path) == ("a.jpg", 0, tmp_path / "a.jpg")
    assert [caption.strip() for caption in first.captions] == ["A dog", 'The "big" dog']
    assert (second.key, second.image_id, second.split) == ("b.jpg", 1, "train")
    assert [caption.strip() for caption in second.captions] == ["A cat, asleep"]


@pytest.mark.parametrize(
    "odd",
    ["b.jpg", "b.jpg,", ',"A cat"', "b.jpg,  "],
    ids=["bare", "empty", "nameless", "blank"],
)
def test_a_line_without_an_image_or_a_caption_is_reported_and_left_out(tmp_path, odd, caplog):
    path = write(tmp_path / "c.csv", f"image,caption\na.jpg,A dog\n{odd}\n")
    (record,) = captions_file.read(path, tmp_path)
    assert record.captions == ("A dog",)
    assert "left out: line 3 of" in caplog.text


def test_json_lines_without_a_caption_are_reported_and_left_out(tmp_path, caplog):
    text = '{"file_name": "a", "text": "A dog"}\n{"file_name": "b"}\n{"file_name": "c", "text": 3}'
    (record,) = captions_file.read(write(tmp_path / "c.jsonl", text), tmp_path)
    assert record.key == "a"
    assert "line 2" in caplog.text
    assert "line 3" in caplog.text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no captions; expected lines such as"),
        ("image,caption\n", "holds no captions"),
        ("image,title\na.jpg,A dog\n", "line 1: the columns are image, title; one must be caption"),
        ('a.jpg,"A dog\nb.jpg,A cat\n', "line 2: unexpected end of data"),
        ('{"file_name": "a.jpg", "text": "A dog"}\n{"file_name"', "line 2: "),
        ('{"file_name": "a.jpg", "text": "A dog"}\n[1]', "line 2: expected a JSON object"),
        ("[1, 2]", "entry 0: expected a JSON object such as"),
        ('[{"file_name": "a.jpg"', "not a JSON array"),
        ('{"images": [], "annotations": []}', "a file for `python -m data_prep coco`"),
        ('{"images": [{"sentences": []}]}', "a file for `python -m data_prep karpathy`"),
        ("titel,bild\na.jpg,A dog\n", "line 1: the columns are titel, bild; one must be image or"),
        (
            "imge,caption\na.jpg,A dog\n",
            "line 1: the columns are imge, caption; .* mean image by imge",
        ),
        (
            "image,captoin\na.jpg,A dog\n",
            "line 1: .* one must be caption or .*mean caption by captoin",
        ),
    ],
)
def test_a_wrong_captions_file_is_refused_with_the_line(tmp_path, text, complaint):
    with pytest.raises(DataError, match=complaint):
        captions_file.read(write(tmp_path / "c.txt", text), tmp_path)


SPLIT_ROWS = [("a.jpg", "A dog", "train"), ("b.jpg", "A cat, asleep", "val"),
              ("a.jpg", 'The "big" dog', "Training"), ("c.jpg", "An owl", "test")]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "image,caption,split\n"
        'a.jpg,A dog,train\nb.jpg,"A cat, asleep",val\na.jpg,"The ""big"" dog",Training\n'
        "c.jpg,An owl,test\n",
        "image,caption,split\n"
        'a.jpg,A dog,train\nb.jpg,A cat, asleep,dev\na.jpg,"The ""big"" dog",train\n'
        "c.jpg,An owl,test\n",
        'a.jpg,A dog,train\nb.jpg,"A cat, asleep",validation\na.jpg,"The ""big"" dog",train\n'
        "c.jpg,An owl,test",
        "Split;File Name;Caption\ntrain;a.jpg;A dog\nval;b.jpg;A cat, asleep\n"
        'train;a.jpg;"The ""big"" dog"\ntest;c.jpg;An owl\n',
        "\n".join(json.dumps(dict(zip(("image", "caption", "split"), row, strict=True)))
                  for row in SPLIT_ROWS),
        json.dumps([dict(zip(("file_name", "text", "split"), row, strict=True))
                    for row in SPLIT_ROWS], indent=1),
    ],
    ids=["header", "unquoted", "bare", "semicolons", "jsonl", "json-array"],
)  # fmt: skip
def test_the_split_in_a_captions_file_is_used(tmp_path, text, caplog):
    found = captions_file.read(write(tmp_path / "c.txt", text), tmp_path)
    assert [(record.key, record.split) for record in found] == [
        ("a.jpg", "train"), ("b.jpg", "val"), ("c.jpg", "test")
    ]  # fmt: skip
    assert [record.captions for record in found] == [
        ("A dog", 'The "big" dog'), ("A cat, asleep",), ("An owl",)
    ]  # fmt: skip
    assert hold_out(found) == found
    assert not caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "image;caption\na.jpg;A dog\nb.jpg;A cat, asleep\n",
        'a.jpg;A dog\nb.jpg;"A cat, asleep"\n',
        '[{"image": "a.jpg", "caption": "A dog"}, {"image": "b.jpg", "caption": "A cat, asleep"}]',
        '{"a.jpg": ["A dog"], "b.jpg": "A cat, asleep"}',
        "Image-Path,Description\na.jpg,A dog\nb.jpg,A cat, asleep\n",
    ],
    ids=["semicolons", "bare-semicolons", "json-array", "json-mapping", "other-names"],
)
def test_other_formats_of_a_captions_file_are_recognised(tmp_path, text):
    found = captions_file.read(write(tmp_path / "c.txt", text), tmp_path)
    assert [(record.key, record.captions) for record in found] == [
        ("a.jpg", ("A dog",)), ("b.jpg", ("A cat, asleep",))
    ]  # fmt: skip


def test_several_captions_files_have_a_split_each(tmp_path):
    files = [
        write(tmp_path / f"{name}.csv", f"{name}.jpg,A dog\n") for name in ("train", "val", "test")
    ]
    found = captions_file.read(files, tmp_path)
    assert [record.split for record in found] == ["train", "val", "test"]
    assert [record.image_id for record in found] == [0, 1, 2]
    found = captions_file.read(files, tmp_path, ["test", "train", "val"])
    assert [record.split for record in found] == ["test", "train", "val"]
    with pytest.raises(ConfigError, match="1 names for 3 captions files"):
        captions_file.read(files, tmp_path, ["test"])
    write(files[1], "train.jpg,A dog\n")
    with pytest.raises(DataError, match=r"line 1: train\.jpg is in val, but an .* has it in train"):
        captions_file.read(files, tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("image,caption,split\na.jpg,A dog,holdout\n", "line 2: the split is 'holdout'; use train"),
        ("image,caption,split\na.jpg,A dog,\n", "line 2: the split is ''; use train, val"),
        ("image,caption,split\na.jpg,A dog,val\na.jpg,A cat,test\n", "line 3: a.jpg is in test"),
        ('{"image": "a", "text": "b", "split": 1}', "line 1: the split is 1"),
        ('{"image": "a", "text": "b", "split": "val"}\n{"image": "c", "text": "d"}',
         "c has no split, but other images have one"),
    ],
)  # fmt: skip
def test_a_split_that_is_unclear_is_refused(tmp_path, text, complaint):
    with pytest.raises(DataError, match=complaint):
        captions_file.read(write(tmp_path / "c.txt", text), tmp_path)


def test_ignored_columns_and_keys_are_reported_once(tmp_path, caplog, paint):
    captions_file.read(
        write(tmp_path / "c.csv", "id,image,caption,weight\n1,a.jpg,A dog,2\n2,b.jpg,A cat,3\n"),
        tmp_path,
    )
    assert caplog.text.count("ignored the columns id, weight") == 1
    captions_file.read(
        write(tmp_path / "c.json", '{"image": "a", "text": "b", "mood": "x"}'), tmp_path
    )
    assert "ignored the columns mood" in caplog.text
    karpathy.read(write(tmp_path / "k.json", {"images": [karpathy_entry(mood="x")] * 2}), tmp_path)
    assert caplog.text.count("ignored the keys of 'images' mood") == 1
    paint(tmp_path, "1.png")
    content = json.loads(coco_file(tmp_path / "coco.json", (1, "1.png")).read_text())
    content["annotations"][0]["language"] = "en"
    coco.read([write(tmp_path / "coco.json", content)], tmp_path)
    assert "ignored the keys of 'annotations' language" in caplog.text


def test_the_split_of_an_image_in_a_coco_file_is_used(tmp_path, paint):
    paint(tmp_path, "1.png", "2.png")
    content = json.loads(coco_file(tmp_path / "c.json", (1, "1.png"), (2, "2.png")).read_text())
    content["images"][1]["split"] = "validation"
    path = write(tmp_path / "c.json", content)
    assert [record.split for record in coco.read([path], tmp_path)] == ["train", "val"]
    assert [r.split for r in coco.read([path], tmp_path, ["test"])] == ["test", "test"]


# --- captions that are not text ----------------------------------------------------------------


@pytest.mark.parametrize("cell", ["nan", "NaN", "NULL", "None", "N/A", "  "])
def test_a_cell_that_means_missing_text_is_not_a_caption(tmp_path, cell, caplog):
    path = write(tmp_path / "c.csv", f"image,caption\na.jpg,A dog\na.jpg,{cell}\n")
    (record,) = captions_file.read(path, tmp_path)
    assert record.captions == ("A dog",)
    assert "left out: line 3 of" in caplog.text


@pytest.mark.parametrize("value", [None, ["a", "dog"], {"raw": "a dog"}, 3, "null"])
def test_a_caption_that_is_not_text_is_left_out_of_every_kind_of_file(
    tmp_path, value, caplog, paint
):
    paint(tmp_path, "1.png")
    content = json.loads(coco_file(tmp_path / "c.json", (1, "1.png")).read_text())
    content["annotations"][1]["caption"] = value
    (record,) = coco.read([write(tmp_path / "c.json", content)], tmp_path)
    assert record.captions == ("caption 0",)
    assert "annotation 1" in caplog.text
    entry = karpathy_entry(sentences=[{"raw": value}, {"raw": "A dog."}])
    (record,) = karpathy.read(write(tmp_path / "k.json", {"images": [entry]}), tmp_path)
    assert record.captions == ("A dog.",)
    assert "entry 0" in caplog.text
    text = json.dumps({"image": "a.jpg", "captions": ["A dog", value]})
    (record,) = captions_file.read(write(tmp_path / "l.jsonl", text), tmp_path)
    assert record.captions == ("A dog",)
    assert "line 1" in caplog.text


@pytest.mark.parametrize("name", [["a.jpg"], None, 5, {"a": 1}])
def test_a_file_name_that_is_not_text_is_refused(tmp_path, name, caplog):
    text = json.dumps([{"image": name, "caption": "A dog"}, {"image": "b", "caption": "A cat"}])
    (record,) = captions_file.read(write(tmp_path / "c.json", text), tmp_path)
    assert record.key == "b"
    assert "left out: entry 0" in caplog.text
    with pytest.raises(DataError, match=r"wrong|lacks"):
        karpathy.read(
            write(tmp_path / "k.json", {"images": [karpathy_entry(filename=name)]}), tmp_path
        )
    path = coco_file(tmp_path / "c.json", (1, name))
    with pytest.raises(DataError, match=r"file_name is .*, not text"):
        coco.read([path], tmp_path)


def test_an_id_that_is_not_a_whole_number_is_not_rounded(tmp_path):
    with pytest.raises(DataError, match=r"id is 3\.7, not a whole number"):
        karpathy.read(
            write(tmp_path / "k.json", {"images": [karpathy_entry(cocoid=3.7)]}), tmp_path
        )


def test_warnings_are_limited_and_counted(tmp_path, caplog):
    lines = "image,caption\na.jpg,A dog\n" + "b.jpg,\n" * 500
    captions_file.read(write(tmp_path / "c.csv", lines), tmp_path)
    assert caplog.text.count("left out: line") == WARNINGS
    assert "no image or no caption, 500 times" in caplog.text


# --- names of images ---------------------------------------------------------------------------


def test_an_image_has_one_name_for_all_its_spellings(tmp_path, paint):
    paint(tmp_path, "dir/a.jpg")
    ways = ["dir/a.jpg", "./dir/a.jpg", "dir//a.jpg", "dir/../dir/a.jpg", "dir\\a.jpg",
            str(tmp_path / "dir/a.jpg")]  # fmt: skip
    lines = "".join(f"{way},caption {number}\n" for number, way in enumerate(ways))
    (record,) = captions_file.read(write(tmp_path / "c.csv", lines), tmp_path)
    assert (record.key, len(record.captions)) == ("dir/a.jpg", 6)
    entries = [karpathy_entry(filepath="./dir", filename="a.jpg")]
    (record,) = karpathy.read(write(tmp_path / "k.json", {"images": entries}), tmp_path)
    assert record.path == tmp_path / "dir/a.jpg"
    (record,) = coco.read([coco_file(tmp_path / "c.json", (1, "dir\\a.jpg"))], tmp_path)
    assert record.path.is_file()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_another_unicode_form_is_found(tmp_path, paint, form):
    there = unicodedata.normalize(form, "Café é.jpg")
    paint(tmp_path, there)
    lines = "".join(f"{unicodedata.normalize(other, there)},A dog\n" for other in ("NFC", "NFD"))
    (record,) = captions_file.read(write(tmp_path / "c.csv", lines), tmp_path)
    assert record.path.is_file()
    assert len(record.captions) == 2


# --- splits ----------------------------------------------------------------------------------


def splits_of(found: list[Record]) -> dict[str, list[str]]:
    return {
        split: [record.key for record in found if record.split == split]
        for split in ("train", "val", "test")
    }


def records(count: int, split: str = "train") -> list[Record]:
    return [Record(f"{split}{n:03d}", Path("x"), split, ("a",), n) for n in range(count)]


def test_a_share_is_held_out_by_seed_whatever_the_order_of_the_images():
    images = records(100)
    found = splits_of(hold_out(images, 0.2, 0.1, seed=3))
    assert [len(keys) for keys in found.values()] == [70, 20, 10]
    again = splits_of(hold_out(images[::-1], 0.2, 0.1, seed=3))
    assert {split: keys[::-1] for split, keys in again.items()} == found
    assert splits_of(hold_out(images, 0.2, 0.1, seed=4)) != found


def test_by_default_a_tenth_is_held_out_unless_there_are_validation_images():
    assert len(splits_of(hold_out(records(50)))["val"]) == 5
    given = [*records(50), *records(3, "val")]
    assert hold_out(given) == given


def test_enough_images_are_held_out_for_a_meaningful_score_and_a_note_says_so():
    for count, held_out in ((1, 0), (2, 1), (5, 2), (10, 5), (14, 5), (50, 5), (100, 10)):
        images = records(count)
        found = hold_out(images)
        assert len(splits_of(found)["val"]) == held_out
        note = held_out_note(images, found)
        assert note.startswith(f"held out: {held_out} of {count} images") == (held_out > 0)
        assert ("CIDEr of one validation image is always 0" in note) == (held_out == 1)
    # A share that is given is kept to.
    assert len(splits_of(hold_out(records(14), 0.1))["val"]) == 1


def test_images_of_one_digest_are_held_out_together():
    images = records(40)
    same = {record.key: str(record.image_id // 4) for record in images}
    found = hold_out(images, 0.2, 0.2, digests=same)
    splits: dict[str, set[str]] = {}
    for record in found:
        splits.setdefault(same[record.key], set()).add(record.split)
    assert all(len(several) == 1 for several in splits.values())
    assert [len(keys) for keys in splits_of(found).values()] == [24, 8, 8]


def test_a_share_takes_at_least_one_image_but_never_the_last():
    assert [len(k) for k in splits_of(hold_out(records(3), 0.01, 0.01)).values()] == [
        1,
        1,
        1,
    ]
    assert [len(k) for k in splits_of(hold_out(records(2), 0.5, 0.4)).values()] == [
        1,
        1,
        0,
    ]
    assert [len(k) for k in splits_of(hold_out(records(1))).values()] == [1, 0, 0]
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        hold_out(records(9), 0.6, 0.4)
