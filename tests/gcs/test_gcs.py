"""Objects of a bucket: listing, reading, writing, and copies in the cache."""

import pytest

from qwen35_jax import gcs


def test_what_is_written_is_listed_and_read(place, tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    gcs.write_bytes(f"{place.address}/a/one", b"one")
    gcs.upload(tmp_path / "file", f"{place.address}/a/deep/sp ace[1]#2?%.txt")
    place.put("ab", b"has the same first letter")
    assert gcs.file_sizes(f"{place.address}/a") == {"one": 3, "deep/sp ace[1]#2?%.txt": 11}
    assert gcs.file_sizes(f"{place.address}/a/one") == {"": 3}
    assert gcs.read_bytes(f"{place.address}/a/deep/sp ace[1]#2?%.txt") == b"from a file"


@pytest.mark.parametrize("address", ["gs://", "gs:///x", "gs://*/x", "gs://UPPER/x", "/tmp"])
def test_an_address_without_a_bucket(address):
    with pytest.raises(ValueError, match="names no bucket"):
        gcs.list_files(address)
