"""A store that is damaged, unfinished or of another run is refused by name, with what to do."""

import json
import shutil

import numpy as np
import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.processing import ChatTemplate, Tokenizer
from tests.train.conftest import small_config
from train.data.documents import Documents
from train.data.masking import Example
from train.data.pipeline import make_batches
from train.signals.shard_file import read_shard
from train.signals.store import Store, document_key, predicting
from train.teacher import find_teacher


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return Tokenizer.from_pretrained(inputs / "base")


@pytest.fixture(scope="module")
def store(stores):
    return Store.open(stores["hidden"])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def shard(folder, number=0):
    return sorted(folder.glob("signals-*"))[number]


def check(store, config, tokenizer, **changes):
    arguments = {"vocabulary": 512, "tokenizer": tokenizer} | changes
    store.check(config.recipe.objective.teacher, config.recipe.data, **arguments)


def test_a_document_is_its_tokens_and_its_trained_mask():
    ids, trained = np.arange(9, dtype=np.int32), np.arange(9) > 4
    key = document_key(Example(ids, trained))
    assert key == document_key(Example(ids.copy(), trained.copy())) and len(key) == 16
    # Stores that were written before go on to be read.
    assert key.hex() == "aa3f775e860ddbcf2d9a74457b86642c"
    others = [Example(ids + 1, trained), Example(ids, ~trained), Example(ids[:8], trained[:8])]
    assert len({key, *map(document_key, others)}) == 4


def test_positions_that_predict_a_trained_token_are_stored():
    trained = np.array([True, False, True, True, False])
    np.testing.assert_array_equal(predicting(Example(np.zeros(5, np.int32), trained)), [1, 2])


def test_a_missing_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no store .*absent; write it with `python -m train\.teach`"):
        Store.open(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no store: it has no header\.json"):
        Store.open(tmp_path)


def test_a_store_that_is_not_complete_is_refused(store_copy):
    (store_copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"is not complete: .* Run `python -m train\.teach` .* again; it goes on"):
        Store.open(store_copy)


def cut_short(folder):
    path = shard(folder, 1)
    path.write_bytes(path.read_bytes()[:-3])


def remove(folder):
    shard(folder, 1).unlink()


def exchange(folder):
    shutil.copy(shard(folder, 0), shard(folder, 1))


def edit_header(folder):
    content = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(content | {"train_on": "last"}, indent=2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, r"signals-000002-0000\.safetensors has \d+ bytes instead of \d+: it is cut short or damaged\."),
        (remove, r"signals-000002-0000\.safetensors: No such file or directory\. Put the file back from a copy; or"),
        (exchange, r"signals-000002-0000\.safetensors"),
        (lambda folder: flip(shard(folder), 0), r"signals-000001-0000\.safetensors"),
        (lambda folder: flip(shard(folder), 40), r"signals-000001-0000\.safetensors"),
        (edit_header, r"header\.json is not the file that manifest\.json lists"),
        (lambda folder: flip(folder / "header.json", 30), r"header\.json is not the file that manifest\.json lists"),
        (lambda folder: flip(folder / "manifest.json", 30), r"manifest\.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
    ],
)
def test_a_damaged_store_is_refused_when_it_is_opened(damage, message, store_copy):
    damage(store_copy)
    with pytest.raises(ValueError, match=message):
        Store.open(store_copy)


def test_every_byte_of_an_index_counts(store_copy):
    """Its header, offsets, checksums and keys: one byte of each."""
    path = shard(store_copy)
    found = read_shard(path)
    payload = min(place.start for place in found.places.values())
    sizes = [found.offsets.nbytes, found.checksums.nbytes, found.keys.nbytes]
    starts = payload - np.cumsum(sizes[::-1])[::-1]
    for place in (*starts.tolist(), payload - 1):
        flip(path, place)
        with pytest.raises(ValueError, match=path.name):
            Store.open(store_copy)
        flip(path, place)
    Store.open(store_copy)


def test_a_changed_byte_of_the_payload_is_found_when_its_document_is_read(store_copy, settings, tokenizer):
    path = shard(store_copy, -1)
    flip(path, path.stat().st_size - 1)
    opened = Store.open(store_copy)
    documents = Documents(settings("unused").recipe.data, tokenizer)
    documents.check()
    examples = [example for [example] in documents.load_rows([(0, row) for row in range(144)])]
    damaged = r"safetensors: the signal of its document \d+ is damaged: its bytes have changed\. Put the file back"
    refused = 0
    for example in examples:
        try:
            opened.signals_of(example)
        except ValueError as err:
            assert path.name in str(err)
            with pytest.raises(ValueError, match=damaged):
                opened.signals_of(example)
            refused += 1
    assert refused == 1


def test_a_damaged_head_is_refused(store_copy, mesh):
    flip(store_copy / "head.safetensors", -1)
    opened = Store.open(store_copy)
    with pytest.raises(ValueError, match=r"head\.safetensors is damaged"):
        opened.head_on(mesh)


def test_the_signal_of_likely_tokens_needs_no_head(stores, mesh):
    assert Store.open(stores["topk"]).head_on(mesh) is None


def test_a_store_fits_its_own_run(store, settings, tokenizer):
    check(store, settings("unused", seed=5, sequences_per_batch=16, shards=2, sequence_length=48), tokenizer)
    check(store, settings("unused"), tokenizer, teacher=store.identity)
    assert store.width == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "topk"}, r"teacher\.signal is 'hidden' there and 'topk' here; give the former\. Or"),
        ({"train_on": "last"}, r"data\.train_on is 'all' there and 'last' here"),
        ({"train_on_thinking": False}, r"data\.train_on_thinking is True there and False here"),
        ({"teacher": {"dtype": "bfloat16"}}, r"teacher\.dtype is 'float32' there and 'bfloat16' here"),
        (
            {"sequence_length": 65},
            r"data\.sequence_length is 64 there and 65 here, so that longer documents may be missing",
        ),
        ({"teacher": {"width": 64}}, r"teacher\.width is 32 there and 64 here"),
    ],
)
def test_other_settings_are_refused_by_name(changes, message, store, settings, tokenizer):
    with pytest.raises(ValueError, match=rf"the store .* does not belong to this run: {message}"):
        check(store, settings("unused", **changes), tokenizer)


def test_another_number_of_tokens_is_refused(stores, settings, tokenizer):
    opened = Store.open(stores["topk"])
    config = settings("unused", signal="topk", teacher={"k": 6})
    with pytest.raises(ValueError, match=r"teacher\.k is 5 there and 6 here"):
        check(opened, config, tokenizer)


def test_another_tokenizer_template_vocabulary_or_teacher_is_refused(store, settings, tokenizer, tmp_path):
    config = settings("unused")
    other = Tokenizer.from_pretrained(
        build_tiny_tokenizer(["another text of words"] * 9, tmp_path / "t", vocab_size=330)
    )
    with pytest.raises(ValueError, match=r"made with another tokenizer; take the student's tokenizer\.json"):
        check(store, config, other)
    template = ChatTemplate(tokenizer.chat_template.source + " ")
    with pytest.raises(ValueError, match="made with another chat template"):
        check(store, config, Tokenizer(tokenizer.backend, template))
    with pytest.raises(ValueError, match="its teacher has 512 tokens and the student 640"):
        check(store, config, tokenizer, vocabulary=640)
    with pytest.raises(ValueError, match="its teacher has another model than the run's teacher"):
        check(store, config, tokenizer, teacher={**store.identity, "model": "other"})
    with pytest.raises(ValueError, match="its teacher has another adapter than the run's teacher"):
        check(store, config, tokenizer, teacher={**store.identity, "adapter": "other"})


def test_all_that_differs_is_named_at_once(store, settings, tokenizer):
    with pytest.raises(ValueError, match=r"teacher\.signal is .*; data\.train_on is .*; its teacher has 512"):
        check(store, settings("unused", signal="topk", train_on="each"), tokenizer, vocabulary=9)


def test_the_teacher_of_the_run_file_is_compared_where_its_files_are_at_hand(
    stores, settings, inputs, tokenizer, tmp_path
):
    def find(**teacher):
        config = settings(stores["hidden"], teacher=teacher)
        student = ModelConfig.from_hf(inputs / "base")
        return find_teacher(
            config.recipe, config.recipe.objective, folder=inputs / "base", student=student, tokenizer=tokenizer
        )

    other = create_checkpoint(small_config(), tmp_path / "other", seed=1, dtype="float32")
    with pytest.raises(ValueError, match="its teacher has another model than the run's teacher"):
        find(path=str(other))
    for at_hand in ({"path": "org/not-here"}, {"path": ""}, {"path": "", "own_base": True, "dtype": "bfloat16"}):
        assert find(**at_hand).settings.width == 32


def test_other_data_are_refused(store, settings, inputs, tokenizer, tmp_path):
    lines = (inputs / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    data = settings("unused", path=str(tmp_path / "train.jsonl")).recipe.data
    with pytest.raises(ValueError, match="it was made from other data: 1 of the sources are not in it"):
        make_batches(data, tokenizer, signals=store)


def test_a_document_that_is_not_in_the_store_is_named(stores, settings, tokenizer):
    """A text is cut into other pieces where the sequences have another length; here a document is simply unknown."""

    class Forgetful(Store):
        def _find(self, example):
            return super()._find(Example(example.input_ids + 1, example.trained))

    data = settings("unused").recipe.data
    batches = make_batches(data, tokenizer, signals=Forgetful.open(stores["hidden"]))
    with pytest.raises(
        ValueError,
        match=r"train\.jsonl line \d+: a document of \d+ tokens is not in the store .*data\.sequence_length=64",
    ):
        next(batches)
