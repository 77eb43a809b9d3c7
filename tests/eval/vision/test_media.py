"""How data files keep images, and what of them is read when."""

import json

import pytest

from eval.tasks.data import digest_of, read_rows
from eval.tasks.media import StoredImage, check_media, image_parts, media_of, resolved, user_parts
from tests.eval.vision.pictures import base64_of, png, write_parquet, write_tsv

RED, BLUE, GREEN = png("red"), png("blue"), png("green")


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red.png").write_bytes(RED)
    (tmp_path / "images" / "blue.png").write_bytes(BLUE)
    return tmp_path


def test_the_same_images_have_one_digest_however_they_are_stored(folder):
    lines = write_json_lines(
        folder / "a.jsonl", [{"n": "1", "image": "images/red.png"}, {"n": "2", "image": "images/blue.png"}]
    )
    stored = [{"n": "1", "image": {"bytes": RED, "path": "x"}}, {"n": "2", "image": {"bytes": BLUE, "path": None}}]
    table = write_parquet(folder / "b.parquet", stored)
    plain = write_parquet(folder / "c.parquet", [{"n": "1", "image": RED}, {"n": "2", "image": BLUE}])
    sheet = write_tsv(folder / "d.tsv", [{"n": "1", "image": base64_of(RED)}, {"n": "2", "image": base64_of(BLUE)}])
    listed = folder / "e.json"
    listed.write_text(json.dumps([{"n": "1", "image": "images/red.png"}, {"n": "2", "image": "images/blue.png"}]))
    digests = {digest_of(read_rows(path, ["image"])) for path in (lines, table, plain, sheet, listed)}
    assert len(digests) == 1
    other = write_parquet(folder / "f.parquet", [{"n": "1", "image": RED}, {"n": "2", "image": RED}])
    assert digest_of(read_rows(other, ["image"])) not in digests
    for path in (lines, table, plain, sheet, listed):
        assert [row.fields["image"].read() for row in read_rows(path, ["image"])] == [RED, BLUE]


def test_images_of_parquet_stay_in_the_file(folder):
    path = write_parquet(folder / "a.parquet", [{"image": {"bytes": RED, "path": None}} for _ in range(5)])
    rows = read_rows(path, ["image"])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        rows[4].fields["image"].read()
    assert rows[4].fields["image"].digest == rows[0].fields["image"].digest


def test_a_sheet_has_quoted_line_breaks_lists_of_images_and_references(folder):
    rows = [
        {"index": "7", "question": 'two\nlines, "quoted"\tand tabs', "image": base64_of(RED)},
        {"index": "1000007", "question": "again", "image": "7"},
        {"index": "8", "question": "two images", "image": str([base64_of(RED), base64_of(BLUE)])},
        {"index": "9", "question": "none", "image": ""},
    ]
    first, again, two, none = read_rows(write_tsv(folder / "a.tsv", rows), ["image"])
    assert first.fields["question"] == 'two\nlines, "quoted"\tand tabs'
    assert again.fields["image"] is first.fields["image"] and first.fields["image"].read() == RED
    assert [image.read() for image in two.fields["image"]] == [RED, BLUE]
    assert "image" not in none.fields and none.where.endswith("a.tsv: row 4")


def test_a_sheet_with_a_wrong_row_or_a_wrong_picture_is_refused(folder):
    path = folder / "a.tsv"
    path.write_text("index\timage\n1\n")
    with pytest.raises(ValueError, match="a row has 1 fields, and the header 2"):
        read_rows(path, ["image"])
    for picture in ("?" * 80, "[" + "?" * 80 + "]", "[" + "a" * 79 + ", 'b']"):
        path.write_text(f"index\timage\n1\t{picture}\n")
        with pytest.raises(ValueError, match="a picture is not base64"):
            read_rows(path, ["image"])


def test_json_by_id_and_other_values(folder):
    path = folder / "a.json"
    path.write_text(json.dumps({"1": {"pid": "1", "image": "images/red.png"}, "2": "B"}))
    first, second = read_rows(path, ["image"])
    assert (first.fields["id"], first.fields["image"].read()) == ("1", RED)
    assert second.fields == {"id": "2", "value": "B"} and second.where == f"{path}: 2"
    path.write_text("3")
    with pytest.raises(ValueError, match="expected a JSON list or object"):
        read_rows(path)


def test_a_missing_image_is_named_when_it_is_needed(folder):
    (row,) = read_rows(write_json_lines(folder / "a.jsonl", [{"image": "images/none.png"}]), ["image"])
    assert row.fields["image"].digest == "missing"
    messages = user_parts(*image_parts([row.fields["image"]], {}), "what?")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: there is no image .*none\.png; put it there"):
        check_media(messages, row.where)
    with pytest.raises(ValueError, match="the question has no picture"):
        check_media(user_parts("what?"), row.where)
    with pytest.raises(ValueError, match=r"there is no video .*a\.mp4"):
        check_media(user_parts({"type": "video", "video": str(folder / "a.mp4")}, "what?"), row.where)


def test_an_image_field_of_another_kind_is_refused(folder):
    with pytest.raises(ValueError, match="an image field holds int, expected bytes or a path"):
        read_rows(write_json_lines(folder / "a.jsonl", [{"image": 3}]), ["image"])


def test_messages_get_the_bytes_when_they_are_asked():
    image = StoredImage("here", lambda: RED)
    messages = user_parts(*image_parts([image], {"min_pixels": 4}), "what?")
    assert [part["type"] for part in media_of(messages)] == ["image"]
    (told,) = resolved(messages)
    assert told["content"][0] == {"type": "image", "image": RED, "min_pixels": 4}
    assert resolved([{"role": "user", "content": "text"}]) == [{"role": "user", "content": "text"}]
