"""Images of data in a bucket: relative paths start at the data file there, as they do on a disk."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen35_jax.processing.image import image_patches, load_image
from tests.train.data.pictures import IMAGE, VISION, as_png, batches, documents, drawn

PICTURE = as_png(drawn(64, 96))


def shown(path, tokenizer, **settings):
    """Returns the patches of each document."""
    return [patches for *_, patches in documents(batches(path, tokenizer, **settings), tokenizer)]


@pytest.fixture
def put(place, tmp_path):
    """Puts a data file with one row whose image has this path, and images, into the bucket."""

    def write(name, image, *images):
        row = {"prompt": "<image>Colour?", "completion": "It is red.", "images": [image]}
        content = (json.dumps(row) + "\n").encode()
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
            content = (tmp_path / "a.parquet").read_bytes()
        for each in images:
            place.put(each, PICTURE)
        return place.put(name, content)

    return write


@pytest.mark.parametrize("data", ["data/a.jsonl", "data/a.parquet", "data", "data/*.jsonl", "da*a/**/*.jsonl"])
@pytest.mark.parametrize("image", ["pictures/a.png", "./pictures/a.png", "../data/pictures/a.png"])
def test_an_image_beside_the_data(data, image, put, place, seeing):
    put("data/a.parquet" if data.endswith("parquet") else "data/a.jsonl", image, "data/pictures/a.png")
    [found] = shown(f"{place.address}/{data}", seeing)
    np.testing.assert_array_equal(found, image_patches(load_image(PICTURE), IMAGE)[0])


def test_a_file_below_the_folder_that_is_named(put, place, seeing):
    put("data/deep/a.jsonl", "a.png", "data/deep/a.png")
    assert len(shown(f"{place.address}/data", seeing)) == 1


def test_the_folder_of_images_may_be_another(put, place, seeing, tmp_path):
    address = put("data/a.jsonl", "a.png", "elsewhere/a.png")
    there = replace(VISION, folder=f"{place.address}/elsewhere")
    assert len(shown(address, seeing, vision=there)) == 1
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert len(shown(address, seeing, vision=replace(VISION, folder=str(tmp_path)))) == 1
    # Data of a disk may have their images in a bucket.
    (tmp_path / "a.jsonl").write_bytes(place.get("data/a.jsonl"))
    (tmp_path / "a.png").unlink()
    assert len(shown(tmp_path / "a.jsonl", seeing, vision=there)) == 1


def test_an_image_that_is_not_there(put, place, seeing):
    with pytest.raises(ValueError, match=rf"line 1: image 1 of the row: '{place.address}/data/a\.png' cannot be read"):
        shown(put("data/a.jsonl", "a.png"), seeing)
