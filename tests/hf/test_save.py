"""Saving: the identity, fine-tunes that transformers loads, merged adapters, and refusals."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qwen35_jax import lora
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.hf.save import save
from qwen35_jax.presets import PRESETS
from tests.hf.helpers import (
    IDS,
    assert_logits_agree,
    assert_same_parameters,
    files_of,
    randomize,
    torch_logits,
)


@pytest.mark.parametrize("shard_bytes", [None, 300_000])
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float32"])
def test_load_and_save_is_the_identity(tmp_path, shard_bytes, param_dtype):
    source = create_checkpoint(PRESETS["tiny"], tmp_path / "source", seed=5, shard_bytes=shard_bytes)
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("stale weights in another format are not copied")
    save(load(source, param_dtype=param_dtype), tmp_path / "out", source)
    want = files_of(source)
    del want["pytorch_model.bin"]
    assert files_of(tmp_path / "out") == want
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_transformers_loads_a_fine_tune(reference, tmp_path):
    transformers = pytest.importorskip("transformers", reason="loads our export with transformers")
    source = reference[0]
    model = load(source, "float32")
    randomize(model, nnx.Param, 0.005)
    save(model, tmp_path / "out", source)
    theirs, report = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype="float32", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_logits_agree(model.logits(IDS), torch_logits(theirs))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name in before:
        assert not np.array_equal(before[name], after[name]), name
    assert_same_parameters(load(tmp_path / "out", "float32"), model)


def test_a_model_without_its_tower_leaves_the_tensors_of_the_tower(reference, tmp_path):
    source = reference[0]
    model = load(source, "float32", vision=False)
    randomize(model, nnx.Param, 0.005)
    save(model, tmp_path / "out", source)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("model.visual."), name


def test_adapters_are_merged_into_the_file_only(untied, tmp_path):
    source = untied[0]
    model = load(source, "float32")
    lora.add(model, lora.LoraConfig(rank=4, targets=lora.GROUPS), seed=1)
    randomize(model, nnx.LoRAParam, 0.05)
    before = nnx.clone(model)
    save(model, tmp_path / "out", source)
    assert_same_parameters(model, before)
    lora.merge(model)
    merged = load(tmp_path / "out", "float32")
    for (path, ours), (_, theirs) in zip(*(nnx.to_flat_state(nnx.state(m)) for m in (merged, model)), strict=True):
        # One layer at a time against the whole stack: the sums of a product may be ordered otherwise.
        np.testing.assert_allclose(ours[...], theirs[...], atol=1e-6, err_msg=str(path))


def test_tied_head_in_the_file_follows(reference, tmp_path):
    source = shutil.copytree(reference[0], tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()
    save_file(tensors, source / "model.safetensors")
    model = load(source, "float32")
    model.embed_tokens.weight.set_value(model.embed_tokens.weight[...] * 2)
    save(model, tmp_path / "out", source)
    after = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(after["lm_head.weight"], tensors["lm_head.weight"] * 2)


def test_refusals(reference, untied, tmp_path):
    model = load(reference[0], "float32")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    with pytest.raises(ValueError, match="full already exists and is not an empty folder"):
        save(model, tmp_path / "full", reference[0])
    with pytest.raises(ValueError, match=r"lm_head\.weight is absent in the model and \(512, 64\) in the source"):
        save(model, tmp_path / "out", untied[0])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(model, tmp_path / "out", tmp_path / "nowhere")
    lora.add(model, lora.LoraConfig(targets=("embed",)), seed=0)
    with pytest.raises(ValueError, match="the output head is tied"):
        save(model, tmp_path / "out", reference[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_nothing_half_written_remains(reference, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    model = load(reference[0], "float32")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        save(model, tmp_path / "out", reference[0])
    assert not list(tmp_path.iterdir())


def test_empty_folder_is_used(reference, tmp_path):
    (tmp_path / "out").mkdir()
    save(load(reference[0], jnp.float32), tmp_path / "out", reference[0])
    assert files_of(tmp_path / "out") == files_of(reference[0])
