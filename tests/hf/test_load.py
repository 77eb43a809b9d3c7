"""Loading: what transformers writes, placement, and every way a checkpoint can be wrong."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.hf.save import save
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import make_mesh
from tests.hf.helpers import (
    IDS,
    assert_logits_agree,
    assert_same_parameters,
    files_of,
    small_config,
    torch_logits,
)


def test_logits_of_the_reference(reference):
    folder, theirs = reference
    ours = load(folder, "float32")
    assert_logits_agree(ours.logits(IDS), torch_logits(theirs))
    assert ours.mtp is not None


@pytest.mark.parametrize("renamed", [False, True])
def test_what_transformers_writes(reference, tmp_path, caplog, renamed):
    """It drops ``mtp.*``, cuts shards, and gives text-only models either prefix."""
    transformers = pytest.importorskip("transformers", reason="reads what transformers writes")
    text_model = transformers.Qwen3_5ForCausalLM.from_pretrained(reference[0], dtype="float32")
    text_model.save_pretrained(tmp_path, max_shard_size="300KB")
    if renamed:
        shards = {file: load_file(file) for file in tmp_path.glob("*.safetensors")}
        (tmp_path / "model.safetensors.index.json").unlink()
        tensors = {name.replace(".language_model", ""): x for shard in shards.values() for name, x in shard.items()}
        save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        ours = load(tmp_path, "float32")
    assert "holds no mtp.* tensors" in caplog.text
    assert ours.mtp is None and ours.config.text.mtp.num_hidden_layers == 0
    assert_logits_agree(ours.logits(IDS), torch_logits(text_model))


def test_storage_dtypes(reference):
    model = load(reference[0], "bfloat16", param_dtype="float32")
    assert {param.dtype for _, param in nnx.to_flat_state(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    assert model.dtype == jnp.bfloat16
    model = load(reference[0], jnp.bfloat16)
    assert model.layers[0].mlp.up_proj.weight.dtype == jnp.bfloat16
    assert model.layers[0].linear_attn.A_log.dtype == model.layers[0].linear_attn.norm.weight.dtype == jnp.float32


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_eight_devices_hold_the_same(reference):
    one = load(reference[0], "float32")
    eight = load(reference[0], "float32", make_mesh(fsdp=4, tensor=2))
    weight = eight.layers[0].mlp.up_proj.weight[...]
    assert weight.addressable_shards[0].data.size * 8 == weight.size
    assert_same_parameters(one, eight)


def test_tied_head_in_the_file(reference, tmp_path):
    folder = _copy(reference[0], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).lm_head is None
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from .*embed_tokens"):
        load(folder)


def _copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def _edit_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _edit_config(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


def _truncate(size):
    def damage(folder):
        with (folder / "model.safetensors").open("r+b") as stream:
            stream.truncate(size)

    return damage


SHARD = "model-00001-of-00001.safetensors"


def _index(weight_map):
    def damage(folder):
        (folder / "model.safetensors").rename(folder / SHARD)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


NORM = "model.language_model.norm.weight"
DAMAGES = {
    "missing": (_edit_tensors(lambda tensors: tensors.pop(NORM)), ValueError, rf"lacks the tensor {NORM}, which"),
    "part of the MTP head missing": (
        _edit_tensors(lambda tensors: [tensors.pop("mtp.fc.weight"), tensors.pop("mtp.norm.weight")]),
        ValueError,
        r"lacks the tensor mtp\.fc\.weight \(and 1 more\)",
    ),
    "unexpected": (
        _edit_tensors(lambda tensors: tensors.update(extra=np.zeros(2, np.float32))),
        ValueError,
        "holds the tensor extra, which its config.json has no place",
    ),
    "misshapen": (
        _edit_tensors(lambda tensors: tensors.update({NORM: np.zeros(63, np.float32)})),
        ValueError,
        rf"{NORM} has shape \[63\], but by config.json it should have \[64\]",
    ),
    "integers": (
        _edit_tensors(lambda tensors: tensors.update({NORM: np.zeros(64, np.int32)})),
        ValueError,
        rf"{NORM} is stored as I32",
    ),
    "untied without head": (_edit_config(tie_word_embeddings=False), ValueError, r"lacks the tensor lm_head\.weight"),
    "cut in the data": (_truncate(200_000), ValueError, "cut short: .* ends at byte"),
    "cut in the header": (_truncate(100), ValueError, "cut short: its 100 bytes do not hold"),
    "empty": (_truncate(0), ValueError, "cut short: its 0 bytes"),
    "absent shard": (
        _index({NORM: "model-00002-of-00002.safetensors"}),
        FileNotFoundError,
        "names the shard model-00002-of-00002.safetensors",
    ),
    "index of another file": (
        _index({"other.weight": SHARD}),
        ValueError,
        f"places other.weight in {SHARD}",
    ),
    "index without a map": (_index(None), ValueError, "is not an index"),
    "index of numbers": (_index({NORM: 3}), ValueError, "is not an index.*a shard is not named"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "holds neither"),
    "no config": (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, r"config\.json does not exist"),
    "architecture": (_edit_config(architectures=["LlamaForCausalLM"]), ValueError, "LlamaForCausalLM"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoints(reference, tmp_path, name):
    damage, error, message = DAMAGES[name]
    folder = _copy(reference[0], tmp_path)
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_mixture_of_experts(tmp_path):
    create_checkpoint(PRESETS["tiny"], tmp_path / "made", seed=0)
    config = PRESETS["35b-a3b"]
    (tmp_path / "made" / "config.json").write_text(json.dumps(config.to_hf()))
    with pytest.raises(ValueError, match="mixture-of-experts layers are not implemented"):
        load(tmp_path / "made")


def _shards_of(folder, source):
    """Adds another checkpoint's weights in shards, with their index."""
    tensors = load_file(source / "model.safetensors")
    names = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("left", ["whole shards", "an index alone", "a damaged index", "an index of other tensors"])
def test_an_index_left_beside_a_single_file_is_not_read(reference, tmp_path, caplog, left):
    """transformers reads the single file too. Other programs go by the index, so an export leaves it out."""
    transformers = pytest.importorskip("transformers", reason="compares with what transformers reads")
    old = create_checkpoint(small_config(), tmp_path / "old", seed=9, dtype="float32")
    folder = _copy(reference[0], tmp_path)
    index = folder / "model.safetensors.index.json"
    if left == "an index of other tensors":
        index.write_text(json.dumps({"weight_map": {NORM: "model.safetensors"}}))
    else:
        _shards_of(folder, old)
    if left == "a damaged index":
        index.write_text("{")
    if left == "an index alone":
        for shard in folder.glob("model-*"):
            shard.unlink()
    with caplog.at_level(logging.WARNING):
        ours = load(folder, "float32")
    assert "does not describe model.safetensors beside it" in caplog.text
    theirs = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype="float32")
    assert_same_parameters(ours, load(reference[0], "float32"))
    same = (model.model.language_model.norm.weight.detach().numpy() for model in (theirs, reference[1]))
    np.testing.assert_array_equal(*same)
    save(ours, tmp_path / "out", folder)
    assert files_of(tmp_path / "out") == files_of(reference[0])


def test_an_index_of_the_single_file_stays(reference, tmp_path, caplog):
    folder = _copy(reference[0], tmp_path)
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with caplog.at_level(logging.WARNING):
        save(load(folder, "float32"), tmp_path / "out", folder)
    assert not caplog.text
    assert files_of(tmp_path / "out") == files_of(folder)


def test_shards_that_the_index_does_not_name_are_not_read(reference, tmp_path):
    folder = _copy(reference[0], tmp_path)
    (folder / "model.safetensors").unlink()
    _shards_of(folder, reference[0])
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00001-of-00003.safetensors")
    ours = load(folder, "float32")
    assert_same_parameters(ours, load(reference[0], "float32"))
    save(ours, tmp_path / "out", folder)
    want = files_of(folder)
    del want["model-00001-of-00003.safetensors"]
    assert files_of(tmp_path / "out") == want


def test_a_tensor_in_two_shards_is_refused_where_the_index_names_the_other(reference, tmp_path):
    folder = _copy(reference[0], tmp_path)
    (folder / "model.safetensors").unlink()
    _shards_of(folder, reference[0])
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    first, second = (folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    twice = next(name for name in names if names[name] == first.name)
    save_file(load_file(second) | {twice: load_file(first)[twice] + 1}, second)
    with pytest.raises(ValueError, match=f"places {twice} in {first.name}, but {second.name} holds it"):
        load(folder)


def test_no_such_folder(tmp_path):
    for path in (tmp_path / "nowhere", "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match="no such folder") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_dtype(reference):
    for dtypes in ({"dtype": "int8"}, {"param_dtype": "float64"}):
        with pytest.raises(ValueError, match="choose one of bfloat16, float16, float32"):
            load(reference[0], **dtypes)
