"""Adapters in PEFT's format: peft reads ours, we read peft's, and what cannot be read is refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qwen35_jax import lora
from qwen35_jax.hf.adapter import load_adapter, save_adapter
from qwen35_jax.hf.load import load
from tests.hf.helpers import (
    IDS,
    assert_logits_agree,
    assert_same_parameters,
    files_of,
    randomize,
    torch_logits,
)

LAYERS = "base_model.model.model.language_model.layers."


def _adapted(source, **settings):
    model = load(source, "float32")
    lora.add(model, lora.LoraConfig(**settings), seed=1)
    randomize(model, nnx.LoRAParam, 0.05)
    return model


@pytest.fixture(scope="module")
def everything(reference, tmp_path_factory):
    """A model with every target adapted, and its adapter on disk: (model, folder)."""
    model = _adapted(reference[0], rank=4, alpha=6, rank_stabilized=True, dropout=0.1, targets=lora.GROUPS)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, folder, reference[0])
    return model, folder


@pytest.mark.parametrize("text_only", [False, True])
def test_peft_reads_ours(reference, everything, tmp_path, text_only):
    peft = pytest.importorskip("peft", reason="reads our adapter with peft")
    model, folder = everything
    if text_only:
        with pytest.raises(ValueError, match="changes the vision tower, which AutoModelForCausalLM does not load"):
            save_adapter(model, tmp_path / "adapter", reference[0], auto_class="AutoModelForCausalLM")
        targets = tuple(group for group in lora.GROUPS if group not in ("tower", "merger"))
        model = _adapted(reference[0], rank=4, rank_stabilized=True, targets=targets)
        folder = save_adapter(model, tmp_path / "adapter", reference[0], auto_class="AutoModelForCausalLM")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        theirs = peft.PeftModel.from_pretrained(_base(reference[0], text_only), folder)
    adapted = {name for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    keys = load_file(folder / "adapter_model.safetensors").keys()
    assert adapted == {key.split(".lora_")[0] for key in keys}
    assert not any("mtp." in key for key in keys)
    apart = load_file(folder / "mtp" / "adapter_model.safetensors")
    assert len(apart) == 16 and all(key.startswith("base_model.model.mtp.") for key in apart)
    assert theirs.peft_config["default"].use_rslora
    assert_logits_agree(model.logits(IDS), torch_logits(theirs.eval()))


def test_peft_refuses_the_other_class(reference, everything):
    peft = pytest.importorskip("peft", reason="reads our adapter with peft")
    with pytest.raises(ValueError, match="not found in the base model"):
        peft.PeftModel.from_pretrained(_base(reference[0], text_only=True), everything[1])


def _base(source, text_only):
    transformers = pytest.importorskip("transformers", reason="peft adapts a transformers model")
    name = "Qwen3_5ForCausalLM" if text_only else "Qwen3_5ForConditionalGeneration"
    return getattr(transformers, name).from_pretrained(source, dtype="float32")


def test_we_read_ours(reference, everything, tmp_path):
    model, folder = everything
    again = load(reference[0], "float32", adapter=folder)
    assert again.lora_config == model.lora_config
    assert_same_parameters(again, model)
    save_adapter(again, tmp_path / "again", reference[0])
    assert files_of(tmp_path / "again") == files_of(folder)


@pytest.mark.parametrize("text_only", [False, True])
def test_we_read_pefts(reference, tmp_path, text_only):
    """Some modules of some layers, bfloat16 factors, and either class of base model."""
    peft = pytest.importorskip("peft", reason="reads what peft writes")
    torch = pytest.importorskip("torch", reason="peft runs on torch")
    modules = ["layers.3.self_attn.q_proj", "out_proj", "layers.2.mlp.up_proj", "embed_tokens"]
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules, init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(_base(reference[0], text_only), settings).eval()
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if "lora_" in key:
                weight.copy_(weight.bfloat16())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(reference[0], "float32", adapter=tmp_path / "theirs")
    assert_logits_agree(ours.logits(IDS), torch_logits(theirs))
    assert ours.lora_config.targets == (
        "embed", "out_proj", "model.layers.2.mlp.up_proj", "model.layers.3.self_attn.q_proj",
    )  # fmt: skip
    again = load(reference[0], "float32")
    lora.add(again, ours.lora_config, seed=0)
    assert lora.choose_layers(again, again.lora_config) == lora.choose_layers(ours, ours.lora_config)

    save_adapter(ours, tmp_path / "ours", reference[0])
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["target_modules"]
    assert sorted(written) == sorted(
        [
            f"model.language_model.{name}"
            for name in ("embed_tokens", "layers.3.self_attn.q_proj", "layers.2.mlp.up_proj")
        ]
        + [f"model.language_model.layers.{i}.linear_attn.out_proj" for i in (0, 2)]
    )


def _settings(**changes):
    def damage(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def _tensors(change):
    def damage(folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return damage


def _truncate(folder):
    with (folder / "adapter_model.safetensors").open("r+b") as stream:
        stream.truncate(20_000)


Q_PROJ = LAYERS + "3.self_attn.q_proj.lora_A.weight"
DAMAGES = {
    "no configuration": (lambda folder: (folder / "adapter_config.json").unlink(), FileNotFoundError, "adapter_config"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), FileNotFoundError, "adapter_model"),
    "not JSON": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        ValueError,
        "is not the configuration",
    ),
    "no rank": (_settings(r=None), ValueError, "is not the configuration"),
    "another method": (_settings(peft_type="IA3"), ValueError, "peft_type='IA3'; only 'LORA'"),
    "DoRA": (_settings(use_dora=True), ValueError, "use_dora=True is not supported"),
    "bias": (_settings(bias="all"), ValueError, "bias='all' is not supported"),
    "saved modules": (
        _settings(modules_to_save=["lm_head"]),
        ValueError,
        "modules_to_save=.'lm_head'. is not supported",
    ),
    "ranks": (_settings(rank_pattern={"q_proj": 8}), ValueError, r"q_proj is \[4, 64\]; at rank 8"),
    "another rank": (
        _settings(r=8),
        ValueError,
        r"embed_tokens is \[4, 512\]; at rank 8 this model needs \[8, 512\]",
    ),
    "half a pair": (_tensors(lambda tensors: tensors.pop(Q_PROJ)), ValueError, r"lora_A.weight of .*q_proj is absent"),
    "a vision module": (
        _tensors(
            lambda tensors: tensors.update(
                {Q_PROJ.replace("language_model.layers.3", "visual.blocks.0"): np.zeros(2, np.float32)}
            )
        ),
        ValueError,
        r"adapts model\.visual\.blocks\.0\.self_attn\.q_proj, which is not a linear layer",
    ),
    "a layer too many": (
        _tensors(lambda tensors: tensors.update({Q_PROJ.replace("layers.3", "layers.11"): np.zeros(2, np.float32)})),
        ValueError,
        r"adapts model\.language_model\.layers\.11\.self_attn\.q_proj",
    ),
    "a strange key": (
        _tensors(lambda tensors: tensors.update(strange=np.zeros(2, np.float32))),
        ValueError,
        "strange is not a LoRA factor",
    ),
    "cut short": (_truncate, ValueError, "cut short"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_adapters(reference_model_loaded, everything, tmp_path, name):
    damage, error, message = DAMAGES[name]
    folder = shutil.copytree(everything[1], tmp_path / "copy")
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load_adapter(reference_model_loaded, folder)
    assert "\n" not in str(caught.value)
    assert lora.count(reference_model_loaded) == 0


@pytest.fixture(scope="module")
def reference_model_loaded(reference):
    return load(reference[0], "float32")


def test_refusals(reference_model_loaded, everything, tmp_path):
    with pytest.raises(ValueError, match="has no adapter to write"):
        save_adapter(reference_model_loaded, tmp_path / "out", "base")
    with pytest.raises(ValueError, match="already exists and is not an empty folder"):
        save_adapter(everything[0], everything[1], "base")
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapter(everything[0], everything[1])
