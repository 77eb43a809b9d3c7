"""What defaults decide, what is refused before a model is loaded, and what a run says of it at its start."""

import dataclasses
import json

import pytest
from safetensors.numpy import load_file

from qwen35_jax import lora
from qwen35_jax.config import MTPConfig
from qwen35_jax.hf.adapter import save_adapter
from qwen35_jax.hf.load import load
from qwen35_jax.lora import LoraConfig
from tests.train.conftest import small_config
from train.config import (
    DataConfig,
    Distillation,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Recipe,
    Supervised,
    TeacherConfig,
    TrainConfig,
)
from train.observe.notes import find_notes
from train.settle import load_start, settle

CONFIG = TrainConfig(Recipe(ModelSource("base"), DataConfig("train.jsonl"), steps=100))
UNTRAINED = Supervised(MtpLossConfig(weight=0))


def without_head():
    small = small_config()
    return dataclasses.replace(small, text=dataclasses.replace(small.text, mtp=MTPConfig(0)))


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, {"attention", "deltanet", "mlp", "embed", "mtp", "norm"}),
        ({"objective": UNTRAINED}, {"attention", "deltanet", "mlp", "embed", "norm"}),
        ({"train": (r"mtp\..*",)}, {"mtp"}),
        ({"lora": LoraConfig()}, {"attention", "deltanet", "mlp", "mtp"}),
        ({"lora": LoraConfig(), "objective": UNTRAINED}, {"attention", "deltanet", "mlp"}),
        ({"lora": LoraConfig(targets=("q_proj",)), "objective": UNTRAINED}, {"attention"}),
    ],
)
def test_groups_that_train(changes, groups):
    config = CONFIG.replace(**changes)
    settled = settle(config, small_config())
    assert settled.groups == groups
    assert settle(settled.config, small_config()) == settled
    assert settled.config.recipe.decide().lora == settled.config.recipe.lora


def test_a_model_without_the_head_needs_no_other_settings():
    config = CONFIG.replace(lora=LoraConfig(), objective=UNTRAINED)
    assert settle(config, without_head()).groups == {"attention", "deltanet", "mlp"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora": LoraConfig(targets=("mtp",)), "objective": UNTRAINED},
            "lora.targets has 'mtp', but .* never trains it",
        ),
        ({"train": ("mtp",), "objective": UNTRAINED}, "mtp.weight=0 takes away all that train chooses"),
        ({"train": ("mlps",)}, "train has 'mlps'.*did you mean 'mlp'"),
        (
            {
                "lora": LoraConfig(targets=("attention", "mlp")),
                "objective": Supervised(MtpLossConfig(gradient="detach_trunk")),
            },
            "'detach_trunk' reaches nothing that lora.targets chooses",
        ),
        (
            {"lora": LoraConfig(targets=("embed",)), "objective": Supervised(MtpLossConfig(gradient="head_only"))},
            "'head_only' reaches nothing",
        ),
        (
            {"train": ("embed",), "objective": Supervised(MtpLossConfig(gradient="head_only"))},
            "'head_only' reaches nothing that train chooses",
        ),
    ],
)
def test_what_would_not_train_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settle(CONFIG.replace(**changes), small_config())


@pytest.fixture(scope="module")
def adapter(inputs, tmp_path_factory):
    """The folder of an adapter of some layers, with settings of its own."""
    model = load(inputs / "base", "float32")
    lora.add(model, LoraConfig(rank=3, alpha=5.0, dropout=0.2, targets=("q_proj", "layers.2.mlp.up_proj")), seed=0)
    for _, layer in lora.adapted_layers(model):
        layer.lora_b[...] = layer.lora_a[..., :1, :1] * 0 + 0.1 * (layer.lora_a[...].sum((-1, -2), keepdims=True) != 0)
    return save_adapter(model, tmp_path_factory.mktemp("start") / "adapter", inputs / "base")


def test_an_adapter_to_start_from_says_what_trains(adapter, inputs):
    config = CONFIG.replace(model=ModelSource("base", adapter=str(adapter)))
    settled = settle(config, small_config()).config.recipe
    decided = settled.decide()
    assert (settled.lora.rank, settled.lora.alpha, settled.lora.dropout) == (3, 5.0, 0.2)
    assert decided.optim.learning_rate == 1e-4 and settled.param_dtype == "bfloat16"
    # The same words choose the layers, in settings of one's own too.
    assert settle(config.replace(lora=settled.lora), small_config()).config.recipe == settled

    model = load(inputs / "base", "float32")
    table = load_start(model, settled)
    assert {(line.module, line.count) for line in table} == {
        ("self_attn.q_proj", 2), ("mlp.up_proj", 1), ("mtp.layers.0.self_attn.q_proj", 1),
    }  # fmt: skip
    assert model.layers[0].mlp.up_proj.lora_b[1].any() and not model.layers[0].mlp.up_proj.lora_b[0].any()


def test_an_exported_adapter_names_the_layers_that_were_chosen(adapter):
    content = json.loads((adapter / "adapter_config.json").read_text())
    names = ("1.self_attn.q_proj", "2.mlp.up_proj", "3.self_attn.q_proj")
    layers = [f"model.language_model.layers.{name}" for name in names]
    assert sorted(content["target_modules"]) == layers and content["r"] == 3
    head = {name.partition(".lora_")[0] for name in load_file(adapter / "mtp" / "adapter_model.safetensors")}
    assert head == {"base_model.model.mtp.layers.0.self_attn.q_proj"}


def test_dropout_is_that_of_the_run(adapter, inputs):
    config = CONFIG.replace(model=ModelSource("base", adapter=str(adapter)))
    theirs = settle(config, small_config()).config.recipe.lora
    recipe = settle(config.replace(lora=dataclasses.replace(theirs, dropout=0.5)), small_config()).config.recipe
    model = load(inputs / "base", "float32")
    load_start(model, recipe)
    assert {layer.lora_dropout for _, layer in lora.adapted_layers(model)} == {0.5} == {model.lora_config.dropout}


def test_another_adapter_than_the_settings_say_is_refused_with_the_flags_to_give(adapter):
    config = CONFIG.replace(model=ModelSource("base", adapter=str(adapter)), lora=LoraConfig(rank_stabilized=True))
    with pytest.raises(ValueError, match=r"another adapter than lora says: lora\.rank is 16, there 3") as caught:
        settle(config, small_config())
    flags = "--lora.rank 3 --lora.alpha 5 --lora.no-rank-stabilized --lora.targets q_proj model.layers.2.mlp.up_proj"
    assert str(caught.value).endswith(f"give {flags}.")


def notes(model_config=None, **changes):
    config = CONFIG.replace(**changes)
    model_config = model_config or small_config()
    settled = settle(config, model_config)
    has_head = model_config.text.mtp.num_hidden_layers > 0
    return find_notes(config.recipe, settled.config.recipe.decide(), settled.groups, has_mtp_head=has_head)


def test_a_run_says_which_values_are_in_use():
    first, precision = notes()
    assert first == (
        "AdamW: learning rate 1e-05 (the default for whole weights) after a warmup of 3 of 100 steps, then cosine to "
        "0; weight decay 0, betas 0.9 and 0.95, gradients clipped at norm 1"
    )
    assert precision == "weights are held in float32"
    given = OptimConfig(2e-4, warmup=9, schedule="linear", final_fraction=0.1, clip_norm=None)
    first, precision = notes(lora=LoraConfig(), optim=given)
    assert "learning rate 0.0002 after a warmup of 9 of 100 steps, then linear to 2e-05" in first
    assert first.endswith("gradients not clipped")
    assert precision == "adapters are held in float32, the weights, which do not train, in bfloat16"


def test_a_run_says_how_bfloat16_weights_are_updated():
    assert "rounded at random" in notes(model=ModelSource("base", param_dtype="bfloat16"))[1]


def test_a_run_says_that_its_warmup_is_cut():
    assert "optim.warmup=30 would outlast the run of steps=3; it is cut to 1" in notes(
        steps=3, optim=OptimConfig(warmup=30)
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"objective": UNTRAINED}, "the MTP head stays as it is, because mtp.weight=0"),
        ({"objective": UNTRAINED, "lora": LoraConfig()}, "the MTP head stays as it is, because mtp.weight=0"),
        ({"lora": LoraConfig(targets=("mlp",))}, "lora.targets=['mlp'] leaves it out, but its loss trains the rest"),
        ({"train": ("mlp",)}, "train=['mlp'] leaves it out, but its loss trains the rest; train it too, or give"),
        ({"lora": LoraConfig(exclude=("mtp",))}, "['all-linear'] without lora.exclude=['mtp'] leaves it out"),
    ],
)
def test_a_run_says_what_becomes_of_the_head(changes, line):
    assert line in notes(**changes)[-1]
    assert not any("MTP" in note for note in notes(lora=LoraConfig()))
    assert not any("MTP" in note for note in notes(without_head(), lora=LoraConfig(), objective=UNTRAINED))


def test_a_teacher_that_shares_weights_which_train_is_refused():
    own = TeacherConfig(own_base=True)
    with pytest.raises(ValueError, match=r"this run trains them; train adapters with --tune lora, or .*path base\."):
        CONFIG.replace(objective=Distillation(own))
    CONFIG.replace(objective=Distillation(own), lora=LoraConfig())
    CONFIG.replace(objective=Distillation(dataclasses.replace(own, store="store")))


@pytest.mark.parametrize(("loss_weight", "is_said"), [(0.0, True), (1.0, False)])
def test_a_student_that_begins_as_its_teacher_is_told(loss_weight, is_said):
    objective = Distillation(TeacherConfig(own_base=True), loss_weight=loss_weight)
    said = notes(objective=objective, lora=LoraConfig())
    assert any("begins equal to its teacher" in note for note in said) == is_said
