"""One file of a store: what is written is read, other programs can read it, and what is damaged is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from tests.train.signals.conftest import Settings
from train.batch import Field
from train.signals.shard_file import KEY_BYTES, read_shard, write_shard
from train.signals.signal import signal_fields

LENGTHS = (3, 0, 7)


def documents(fields):
    rng = np.random.default_rng(0)

    def array(field: Field, length):
        return rng.normal(size=(length, *field.shape(1, 1)[2:]), scale=9).astype(field.dtype)

    return [
        (bytes([number] * KEY_BYTES), {name: array(field, length) for name, field in fields.items()})
        for number, length in enumerate(LENGTHS)
    ]


@pytest.fixture(params=["hidden", "topk"])
def written(request, tmp_path):
    fields = signal_fields(Settings(request.param))
    content = documents(fields)
    write_shard(tmp_path / "file.safetensors", content, fields=fields, metadata={"cut": "1"})
    return tmp_path / "file.safetensors", content


def test_what_is_written_is_read(written):
    path, content = written
    shard = read_shard(path)
    assert shard.metadata == {"cut": "1"} and shard.num_bytes == path.stat().st_size
    assert [key.tobytes() for key in shard.keys] == [key for key, _ in content]
    for number, (_, rows) in enumerate(content):
        np.testing.assert_equal(shard.read(number), rows)


def test_the_safetensors_library_reads_it(written):
    path, content = written
    with safe_open(path, framework="flax") as file:
        assert {"offsets", "checksums", "keys"} < set(file.keys())
        for name in content[0][1]:
            whole = np.concatenate([rows[name] for _, rows in content])
            np.testing.assert_array_equal(np.asarray(file.get_tensor(name)), whole)


def test_a_token_takes_the_bytes_that_the_readme_says():
    def size(signal):
        fields = signal_fields(Settings(signal))
        return sum(np.dtype(field.dtype).itemsize * int(np.prod(field.sizes)) for field in fields.values())

    assert size("hidden") == 2 * 6
    assert size("topk") == 4 * (4 + 2) + 4


def test_a_changed_byte_of_the_payload_is_found_when_its_document_is_read(written):
    path, content = written
    shard = read_shard(path)
    first = min(place.start for place in shard.places.values())
    damaged = bytearray(path.read_bytes())
    damaged[first] ^= 1
    path.write_bytes(damaged)
    again = read_shard(path)
    assert again.digest == shard.digest
    with pytest.raises(ValueError, match=r"file\.safetensors: the signal of its document 0 is damaged"):
        again.read(0)
    np.testing.assert_equal(again.read(2), content[2][1])


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_that_is_cut_short_is_refused(written, kept):
    path, _ = written
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="cut short"):
        read_shard(path)


def test_a_file_is_whole_or_absent(tmp_path):
    """What a kill leaves has another name."""
    fields = signal_fields(Settings("hidden"))
    broken = [(b"0" * KEY_BYTES, {"teacher_states": np.zeros((2, 6), jnp.bfloat16)}), (b"1" * KEY_BYTES, {})]
    with pytest.raises(KeyError):
        write_shard(tmp_path / "file.safetensors", broken, fields=fields, metadata={})
    assert not (tmp_path / "file.safetensors").exists()
