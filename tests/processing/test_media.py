"""Sources of images and videos, and what a policy allows."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing.media import MediaError, MediaPolicy, describe, open_media

POLICY = MediaPolicy()


def test_files_are_found_by_path_and_address(tmp_path, monkeypatch):
    file = tmp_path / "a picture.png"
    file.write_bytes(b"x")
    for source in (str(file), file, file.as_uri(), f"file://localhost{file.as_uri()[7:]}", {"path": str(file)}):
        assert open_media(source, POLICY) == file
    assert open_media("a picture.png", MediaPolicy(root=tmp_path)) == file
    assert open_media(str(file), MediaPolicy(root="/elsewhere")) == file
    monkeypatch.chdir(tmp_path)
    assert open_media("a picture.png", POLICY) == Path("a picture.png")


def test_contents_are_given_as_they_are():
    image, array = Image.new("RGB", (1, 1)), np.zeros((1, 1, 3), np.uint8)
    assert open_media(image, POLICY) is image and open_media(array, POLICY) is array
    assert open_media(bytearray(b"ab"), POLICY) == open_media(memoryview(b"ab"), POLICY) == b"ab"
    assert open_media({"bytes": b"ab", "path": "gone.png"}, POLICY) == b"ab"
    assert open_media(f"data:image/png;base64,{base64.b64encode(b'ab').decode()}", POLICY) == b"ab"
    assert open_media("data:,a%20b", POLICY) == b"a b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.png", "there is no file 'gone.png'"),
        ("/dev/zero", "there is no file '/dev/zero'"),
        ("/", "^'/' is a folder; name a file in it"),
        ("a\0b", "there is no file"),
        (
            "a" * 5000,
            r"'a+\.\.\.' cannot be opened: .*too long; if it is base64, write data:image/png;base64,",
        ),
        ("", "'' is no image or video"),
        (None, "None is no image or video"),
        (7, "a value of type int is no image or video"),
        ({"bytes": None, "path": None}, "None is no image or video"),
        ({}, "None is no image or video"),
        ("ftp://a/b", r"^'ftp://a/b' cannot be opened: addresses of the kind ftp:// .* file://\.$"),
        ("s3://a/b", "addresses of the kind s3://"),
        ("file://other/a.png", "names another machine"),
        ("https://example.org/a.png", r"'https://example.org/a.png' is not fetched: .* allow_urls"),
        ("data:image/png;base64", "holds no comma"),
        ("data:image/png;base64,@@@", "no valid base64"),
        ("data:image/png;base64,é", "no valid base64"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_line(source, message):
    with pytest.raises(MediaError, match=message) as caught:
        open_media(source, POLICY)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_can_be_forbidden(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    for source in (str(file), file, file.as_uri(), {"path": str(file)}, "gs://bucket/a.png"):
        with pytest.raises(MediaError, match="files are not allowed here"):
            open_media(source, MediaPolicy(allow_files=False))


def test_files_can_be_kept_inside_a_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside.png"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.png").write_bytes(b"x")
    outside.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside)
    policy = MediaPolicy(root=inside, only_inside_root=True)
    assert open_media("deep/../a.png", policy).read_bytes() == b"x"
    for source in ("../outside.png", str(outside), "link.png", outside.as_uri(), "deep/../../outside.png"):
        with pytest.raises(MediaError, match="lies outside"):
            open_media(source, policy)
    with pytest.raises(ValueError, match="set root"):
        MediaPolicy(only_inside_root=True)


@pytest.mark.parametrize("field", ["max_bytes", "max_pixels", "timeout"])
def test_limits_are_positive(field):
    with pytest.raises(ValueError, match=f"{field}=-1 must be positive"):
        MediaPolicy(**{field: -1})


def test_data_uris_have_the_limit_of_downloads():
    policy = MediaPolicy(max_bytes=100)
    content = base64.b64encode(bytes(99)).decode()
    assert len(open_media(f"data:image/png;base64,{content}", policy)) == 99
    for source in (f"data:image/png;base64,{content}AAAA", f"data:,{'a' * 101}"):
        with pytest.raises(MediaError, match="a data URI holds more than max_bytes=100"):
            open_media(source, policy)


def test_objects_of_buckets_are_read(monkeypatch):
    read = []
    monkeypatch.setattr("qwen35_jax.gcs.read_bytes", lambda address: read.append(address) or b"x")
    assert open_media("gs://bucket/a.png", POLICY) == b"x"
    inside = MediaPolicy(root="gs://bucket/data/", only_inside_root=True)
    for source in ("images/a.png", "./images/../images/a.png"):
        assert open_media(source, inside) == b"x"
    assert read == ["gs://bucket/a.png", *["gs://bucket/data/images/a.png"] * 2]
    for source in ("gs://bucket/a.png", "gs://bucket/data/../a.png", "gs://bucket/database/a.png", "../a.png"):
        with pytest.raises(MediaError, match="lies outside"):
            open_media(source, inside)


def test_sources_are_named_shortly():
    assert describe("data:image/png;base64," + "A" * 1000) == "a data URI"
    assert len(describe("https://example.org/" + "a" * 1000)) <= 81
    assert describe(np.zeros((2, 3), np.uint8)) == "an array of uint8 with shape (2, 3)"
    assert describe(Image.new("L", (1, 1))) == "a Pillow image of mode L"
    assert describe({"bytes": b"abc", "path": None}) == "a file of 3 bytes"
    assert describe(io.BytesIO()) == "a value of type BytesIO"
