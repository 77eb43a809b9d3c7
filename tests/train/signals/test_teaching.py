"""A store against the live teacher: the same values for every document, however both are laid out."""

import dataclasses
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.hf.load import load
from qwen35_jax.ops.positions import shift_left
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import MeshConfig, make_mesh
from train.batch import put_batch, take_sequences
from train.config import Source
from train.data.pipeline import make_batches
from train.data.validation import read_validation
from train.objectives.terms import shifted_targets
from train.signals import teaching
from train.signals.live import LiveTeacher
from train.signals.signal import STATES
from train.signals.store import Store
from train.signals.writing import Writer
from train.teacher import Heard

OTHER_LAYOUT = {"sequences_per_batch": 8, "seed": 3, "shards": 2, "open_sequences": 2, "sequence_length": 60}


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return Tokenizer.from_pretrained(inputs / "base")


@pytest.fixture(scope="module")
def live(inputs, mesh, settings):
    """Returns the live signal for batches of the host, of either kind."""
    model = load(inputs / "base", "float32", mesh)
    teachers = {
        signal: LiveTeacher(
            model, settings("unused", signal=signal).recipe.objective.teacher.with_width(32), mesh, chunk_tokens=256
        )
        for signal in ("hidden", "topk")
    }

    def teach(signal, batch):
        placed = put_batch({name: batch[name] for name in ("input_ids", "segment_ids")}, accumulation=2, mesh=mesh)
        taught = teachers[signal].teach(placed)
        return {
            name: take_sequences(array, range(len(batch["input_ids"])), mesh=mesh) for name, array in taught.items()
        }

    return teach


def following(batch):
    """Returns the token after each position, and whether the position predicts a trained token."""
    tokens = {name: jnp.asarray(batch[name]) for name in ("input_ids", "segment_ids", "trained")}
    ids, weights = shifted_targets(tokens, 1)
    return np.asarray(ids), np.asarray(weights) > 0


def targets(batch):
    """Marks the positions that predict a trained token."""
    return following(batch)[1]


def batches_of(config, tokenizer, store):
    """Returns the batches of an epoch and of the validation data, with the stored signal."""
    data = dataclasses.replace(config.recipe.data, epochs=1)
    batches = make_batches(data, tokenizer, signals=store)
    every = range(data.sequences_per_batch)
    return [*batches, *read_validation(data, tokenizer, every, batches.corpus, signals=store).batches]


def signals_by_document(batches, fields):
    """Returns the signal of each document at the positions that predict a trained token, by its tokens."""
    found = {}
    for batch in batches:
        wanted = targets(batch)
        for s, number in {(s, n) for s, row in enumerate(batch["segment_ids"]) for n in row.tolist() if n}:
            inside = batch["segment_ids"][s] == number
            document = tuple(batch["input_ids"][s, inside].tolist())
            found[document] = {name: batch[name][s, inside & wanted[s]] for name in fields}
    return found


@pytest.mark.parametrize("signal", ["hidden", "topk"])
def test_the_stored_signal_of_the_first_epoch_is_the_live_one_bit_for_bit(signal, stores, settings, tokenizer, live):
    store = Store.open(stores[signal])
    batches = batches_of(settings("unused", signal=signal), tokenizer, store)
    assert len(batches) > 20 and sum(targets(batch).sum() for batch in batches) == store.totals["tokens"]
    for batch in batches:
        wanted = targets(batch)
        for name, array in live(signal, batch).items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name][wanted], array[wanted])
            assert not np.any(batch[name][~wanted])


@pytest.mark.parametrize("signal", ["hidden", "topk"])
def test_another_layout_reads_the_same_values(signal, stores, settings, tokenizer, live):
    store = Store.open(stores[signal])
    plain = signals_by_document(batches_of(settings("unused", signal=signal), tokenizer, store), store.fields)
    batches = batches_of(settings("unused", signal=signal, **OTHER_LAYOUT), tokenizer, store)
    assert len(plain) == store.totals["documents"] == 144
    np.testing.assert_equal(signals_by_document(batches, store.fields), plain)
    if signal == "hidden":
        wanted, computed = targets(batches[0]), live(signal, batches[0])[STATES]
        # The teacher saw the documents at other places: float32 sums in another order.
        np.testing.assert_allclose(batches[0][STATES][wanted], computed[wanted], atol=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(data=2), MeshConfig(fsdp=2, context=2, tensor=2)], ids=str)
def test_a_mesh_writes_the_same_store(mesh, stores, settings, tokenizer, tmp_path):
    teaching.write_store(settings(tmp_path / "store", mesh=mesh, **OTHER_LAYOUT))
    found, plain = Store.open(tmp_path / "store"), Store.open(stores["hidden"])
    assert {**found.totals, "bytes": 0} == {**plain.totals, "bytes": 0}
    run = settings("unused")
    got, want = (signals_by_document(batches_of(run, tokenizer, each), plain.fields) for each in (found, plain))
    for document, rows in want.items():
        # float32 sums in another order.
        np.testing.assert_allclose(got[document][STATES], rows[STATES], atol=1e-5)
    one_device = make_mesh()
    np.testing.assert_array_equal(found.head_on(one_device), plain.head_on(one_device))


def test_what_is_read_at_a_position_is_about_the_token_that_follows(settings, tokenizer, tmp_path, monkeypatch):
    """The teacher here says the next token itself, so a signal at the wrong place is seen."""

    def hear(teacher, *_):
        width = teacher.settings.width

        def teach(batch):
            ids = jax.vmap(lambda each: shift_left(each, 1))(batch["input_ids"])
            return {STATES: ids[..., None].repeat(width, -1).astype(np.float32)}

        return Heard(np.zeros((512, width), np.float32), types.SimpleNamespace(teach=teach))

    monkeypatch.setattr(teaching, "hear", hear)
    monkeypatch.setattr(teaching, "write_head", lambda *_: None)
    teaching.write_store(settings(tmp_path / "store"))
    store = Store.open(tmp_path / "store")
    for batch in batches_of(settings("unused", **OTHER_LAYOUT), tokenizer, store):
        ids, wanted = following(batch)
        assert wanted.any()
        np.testing.assert_array_equal(batch[STATES][..., 0], ids * wanted)


def test_equal_documents_are_stored_once_and_rows_that_are_drawn_again_not_at_all(
    settings, inputs, tokenizer, tmp_path
):
    lines = (inputs / "train.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:30], lines[0], lines[1]]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[30:33]) + "\n")
    mixture = (Source(str(tmp_path / "a.jsonl")), Source(str(tmp_path / "b.jsonl"), weight=2.0))
    config = settings(tmp_path / "store", path=None, sources=mixture, eval_fraction=None)
    teaching.write_store(config)
    store = Store.open(tmp_path / "store")
    assert store.totals["documents"] == 33
    for batch, _ in zip(make_batches(config.recipe.data, tokenizer, signals=store), range(30), strict=False):
        assert np.any(batch[STATES])


def test_a_killed_run_goes_on_and_writes_the_same_files(stores, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "SHARD_BYTES", 1 << 17)
    folder, cut, cuts = tmp_path / "store", Writer.cut, []

    def killed(writer, state):
        if len(cuts) == 2:
            (folder / "signals-000009-0000.safetensors.partial").write_bytes(b"half a file")
            cuts.append("killed")
            raise Killed
        cuts.append(cut(writer, state).name)

    monkeypatch.setattr(Writer, "cut", killed)
    with pytest.raises(Killed):
        teaching.write_store(settings(folder))
    with pytest.raises(ValueError, match=r"is not complete: it has 2 files .* goes on after the last whole file"):
        Store.open(folder)
    teaching.write_store(settings(folder))
    names = [name for name in cuts if name != "killed"]
    assert len(names) == len(set(names)) > 3
    whole = {path.name: path.read_bytes() for path in stores["hidden"].iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    teaching.write_store(settings(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_file_that_was_damaged_meanwhile_is_written_anew_with_those_after_it(stores, store_copy, settings):
    (store_copy / "manifest.json").unlink()
    damaged = sorted(store_copy.glob("signals-*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "SHARD_BYTES", 1 << 17)
        teaching.write_store(settings(store_copy))
    for path in stores["hidden"].iterdir():
        assert (store_copy / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "topk"}, r"teacher\.signal is 'hidden' there and 'topk' here"),
        ({"train_on": "last"}, r"data\.train_on is 'all' there and 'last' here"),
        ({"sequence_length": 80}, r"data\.sequence_length is 64 there and 80 here, so that longer documents may be"),
        ({"sequence_length": 48}, r"the run file now has another sequence_length"),
        ({"sequences_per_batch": 8}, r"was begun with other settings \(.*sequences_per_batch was 4, is 8"),
    ],
)
def test_a_store_of_other_settings_is_not_gone_on_with(changes, message, store_copy, settings):
    (store_copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=message):
        teaching.write_store(settings(store_copy, **changes))


def test_the_student_s_own_base_is_a_teacher_without_a_path(stores, settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teaching, "SHARD_BYTES", 1 << 17)
    with caplog.at_level("INFO"):
        teaching.write_store(settings(tmp_path / "store", teacher={"path": "", "own_base": True}))
    # 32 hidden numbers of 4 bytes.
    assert re.search(r"the store takes 128 bytes for a trained token, about \d+\.\d MB in all", caplog.text)
    for path in stores["hidden"].iterdir():
        assert (tmp_path / "store" / path.name).read_bytes() == path.read_bytes()


def test_a_store_that_is_not_named_is_asked_for(settings):
    with pytest.raises(ValueError, match=r"say with --teacher\.store DIR"):
        teaching.write_store(settings("unused", teacher={"store": None}))
    with pytest.raises(ValueError, match=r"gs://bucket/store is an address, and a path on this machine is needed"):
        teaching.write_store(settings("gs://bucket/store"))


def test_a_folder_that_holds_something_else_is_left_alone(settings, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no store"):
        teaching.write_store(settings(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_row_that_cannot_be_used_follows_the_policy_of_the_run(settings, inputs, tmp_path):
    lines = (inputs / "train.jsonl").read_text().splitlines()[:20]
    bad = json.dumps({"messages": [{"role": "user", "content": "no answer"}]})
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, bad]) + "\n")
    options = {"path": str(tmp_path / "rows.jsonl"), "eval_fraction": None}
    with pytest.raises(ValueError, match=r"rows\.jsonl line 21"):
        teaching.write_store(settings(tmp_path / "store", **options))
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    teaching.write_store(settings(tmp_path / "store", bad_rows="drop", **options))
    assert Store.open(tmp_path / "store").totals["documents"] == 20
