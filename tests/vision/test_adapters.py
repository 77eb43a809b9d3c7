"""Adapters and full fine-tunes of tower and merger: which parts they take, and that peft and transformers read them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from qwen35_jax import lora
from qwen35_jax.hf.adapter import save_adapter
from qwen35_jax.hf.load import load
from qwen35_jax.hf.save import save
from qwen35_jax.vision.patches import pack_patches
from tests.hf.helpers import randomize
from tests.vision.mixes import make_mix, torch_inputs

TARGETS = ("tower", "merger", "q_proj")


@pytest.fixture(scope="module")
def mix(config):
    return make_mix(config, [2, (1, 4, 6), 3, (2, 2, 4), 2])


def our_logits(model, mix):
    return model.logits(mix.input_ids, pixels=mix.pixels, grids=mix.grids)


def their_logits(model, config, mix):
    import torch

    with torch.no_grad():
        return model.eval()(**torch_inputs(config, mix)).logits.numpy()


@pytest.fixture(scope="module")
def adapted(pair):
    """A model with adapters of tower, merger and decoder that matter."""
    model = load(pair[1], "float32")
    lora.add(model, lora.LoraConfig(rank=4, alpha=8, targets=TARGETS), seed=1)
    randomize(model, nnx.LoRAParam, 0.05)
    return model


def test_the_groups_take_the_linear_layers_of_the_tower(adapted):
    counts = {match.module: (match.group, match.count) for match in lora.table(adapted)}
    assert counts["vision.blocks.attn.qkv"] == ("tower", 3)
    assert {name for name in counts if name.startswith("vision")} == {
        *(f"vision.blocks.{name}" for name in ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")),
        "vision.merger.linear_fc1",
        "vision.merger.linear_fc2",
    }


@pytest.mark.parametrize("words", [("all-linear",), (".*",), (".*proj",)])
def test_nothing_takes_the_tower_unless_it_is_named(pair, words):
    model = load(pair[1], "float32")
    lora.add(model, lora.LoraConfig(targets=words), seed=0)
    assert not any(path[0] == "vision" for path, _ in lora.adapted_layers(model))


def test_peft_reads_ours_and_we_read_it_again(pair, config, adapted, mix, tmp_path):
    peft = pytest.importorskip("peft", reason="reads our adapter with peft")
    transformers = pytest.importorskip("transformers", reason="peft adapts a transformers model")
    want = our_logits(adapted, mix)
    folder = save_adapter(adapted, tmp_path / "adapter", pair[1])
    base = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(pair[1], dtype="float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        theirs = peft.PeftModel.from_pretrained(base, folder)
    # Logits of order 1, float32 on both sides.
    np.testing.assert_allclose(their_logits(theirs, config, mix), want, rtol=0, atol=1e-4)
    again = load(pair[1], "float32", adapter=folder)
    np.testing.assert_allclose(our_logits(again, mix), want, rtol=0, atol=1e-5)
    assert set(again.lora_config.targets) == set(TARGETS)
    assert np.abs(our_logits(load(pair[1], "float32"), mix) - want).max() > 0.01
    with pytest.raises(ValueError, match="loaded without its vision tower"):
        load(pair[1], "float32", adapter=folder, vision=False)


def test_we_read_pefts(pair, config, mix, tmp_path):
    peft = pytest.importorskip("peft", reason="reads what peft writes")
    transformers = pytest.importorskip("transformers", reason="peft adapts a transformers model")
    base = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(pair[1], dtype="float32")
    modules = ["qkv", "visual.merger.linear_fc2", "visual.blocks.1.mlp.linear_fc1", "o_proj"]
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=modules, init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(pair[1], "float32", adapter=tmp_path / "theirs")
    np.testing.assert_allclose(our_logits(ours, mix), their_logits(theirs, config, mix), rtol=0, atol=1e-4)


@pytest.mark.parametrize("merged", [False, True], ids=["fine-tuned", "merged"])
def test_transformers_loads_a_changed_tower(pair, config, adapted, mix, tmp_path, merged):
    transformers = pytest.importorskip("transformers", reason="loads our export with transformers")
    model = adapted
    if not merged:
        model = load(pair[1], "float32")
        randomize(model.vision, nnx.Param, 0.01)
    save(model, tmp_path / "out", pair[1])
    theirs, report = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype="float32", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    np.testing.assert_allclose(their_logits(theirs, config, mix), our_logits(model, mix), rtol=0, atol=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (pair[1], tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    if merged:
        assert all(name.endswith(("linear_fc1.weight", "linear_fc2.weight", "attn.qkv.weight", "attn.proj.weight",
                                  "q_proj.weight")) for name in changed)  # fmt: skip
    else:
        assert changed == {name for name in before if ".visual." in name}


def test_dropout_acts_in_the_tower(adapted, mix):
    patches = jax.tree.map(jnp.asarray, pack_patches([mix[1:]]))
    lora.set_dropout(adapted, 0.5)
    run = nnx.jit(
        lambda model, patches, key: model.vision_features(patches, dropout_key=key).main[0, : len(mix.pixels) // 4]
    )
    first, again, other = (run(adapted, patches, jax.random.key(seed)) for seed in (0, 0, 1))
    lora.set_dropout(adapted, 0.0)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
