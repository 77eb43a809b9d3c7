"""Settings of other people's adapters: what we load is what peft makes of them, and all else is refused by name."""

import copy
import json
import re
import shutil
import warnings

import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qwen35_jax import lora
from qwen35_jax.hf.adapter import load_adapter
from qwen35_jax.hf.assembly import arrays_of
from qwen35_jax.hf.load import load
from qwen35_jax.hf.names import tensor_table
from qwen35_jax.hf.save import host_tensors

peft = pytest.importorskip("peft", reason="compares with peft")
torch = pytest.importorskip("torch", reason="peft runs on torch")

MODULES = ["q_proj", "o_proj", "up_proj", "out_proj", "in_proj_z", "layers.3.self_attn.v_proj"]
SEARCH = settings(
    max_examples=24,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # Examples are small already, and to make one smaller takes minutes.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def models(reference):
    """Our model and the reference, with the same weights."""
    return load(reference[0], "float32"), reference[1]


def _merged_by_us(model, folder):
    """Returns the checkpoint's tensors with the adapter merged in."""
    model = nnx.clone(model)
    load_adapter(model, folder)
    weights = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    arrays = dict(item for path, param in nnx.to_flat_state(weights) for item in arrays_of(lora.tree_path(path), param))
    ours = tensor_table(model.config).values()
    return {spec.name: value for spec, value in host_tensors(arrays, ours, dict(lora.adapted_layers(model)))}


def _merged_by_peft(reference, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(copy.deepcopy(reference), folder).merge_and_unload()
    return {name: value.numpy() for name, value in merged.state_dict().items()}


def _assert_as_peft_makes_it(models, folder):
    ours, theirs = _merged_by_us(models[0], folder), _merged_by_peft(models[1], folder)
    for name, value in ours.items():
        if not name.startswith("mtp."):
            np.testing.assert_allclose(value, theirs[name], rtol=0, atol=2e-6, err_msg=name)


def _write(reference, folder, **options):
    """Lets peft write an adapter with random factors."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**{"init_lora_weights": False, "target_modules": MODULES} | options)
        peft.get_peft_model(copy.deepcopy(reference), config).save_pretrained(folder)


patterns = st.sampled_from(["q_proj", "layers.1.self_attn.q_proj", r".*\.up_proj", "mlp", r"layers\.[02]\..*"])
# The first pattern that matches counts. peft sorts them when it writes, so unsorted ones it cannot read back itself.
by_pattern = st.dictionaries(patterns, st.integers(1, 7), max_size=3).map(lambda values: dict(sorted(values.items())))
targets = st.lists(st.sampled_from(MODULES), min_size=2, unique=True)
made_by_peft = st.fixed_dictionaries(
    {"r": st.integers(1, 5), "lora_alpha": st.integers(1, 9), "use_rslora": st.booleans()},
    optional={
        "target_modules": targets | st.sampled_from([r".*\.[qv]_proj", r".*layers.*(up|out)_proj"]),
        "rank_pattern": by_pattern,
        "alpha_pattern": by_pattern,
        "exclude_modules": st.just(["layers.1.self_attn.q_proj"]) | st.just(r".*layers\.0\..*"),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
    },
)  # fmt: skip


@SEARCH
@given(options=made_by_peft)
def test_adapters_that_peft_writes(models, tmp_path, options):
    _write(models[1], tmp_path / "adapter", **options)
    _assert_as_peft_makes_it(models, tmp_path / "adapter")


@pytest.mark.parametrize(
    "options",
    [
        {"layers_to_transform": [1, 3]},
        {"layers_to_transform": 1, "layers_pattern": "layers", "target_modules": ["q_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*(visual|in_proj_[ab]).*"},
        {"rank_pattern": {"q_proj": 6}, "use_rslora": True, "alpha_pattern": {r"layers\.3\..*": 2}},
    ],
)
def test_adapters_of_some_layers_or_ranks(models, tmp_path, options):
    _write(models[1], tmp_path / "adapter", **options)
    _assert_as_peft_makes_it(models, tmp_path / "adapter")


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    _write(models[1], folder, r=2)
    return folder


def _changed(plain, folder, changes):
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    content = json.loads((plain / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(content))


words = st.sampled_from(["", "none", "all", "gaussian", "pissa", "q_proj", "("])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q_proj", "r"]), inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from([*peft.LoraConfig.__dataclass_fields__, "use_something_new", "trust"])


@SEARCH
@given(changes=st.dictionaries(keys, values, min_size=1, max_size=2))
def test_settings_of_any_value_are_obeyed_or_refused_in_one_line(models, plain, tmp_path, changes):
    folder = tmp_path / "changed"
    _changed(plain, folder, changes)
    try:
        _merged_by_us(models[0], folder)
    except ValueError as err:
        assert ("\n" not in str(err) and str(folder) in str(err)) or "LoRA" in str(err)
        return
    try:
        _merged_by_peft(models[1], folder)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return  # peft itself does not take it: there is nothing to compare with.
    _assert_as_peft_makes_it(models, folder)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        *[("init_lora_weights", value, "path_initial_model_for_weight_conversion") for value in
          ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "mica", "something_new")],
        ("use_dora", True, "merge_and_unload"),
        ("use_qalora", True, "merge_and_unload"),
        ("bias", "lora_only", "merge_and_unload"),
        ("lora_bias", True, "merge_and_unload"),
        ("modules_to_save", ["embed_tokens"], "merge_and_unload"),
        ("target_parameters", ["mlp.experts.down_proj"], "merge_and_unload"),
        ("layer_replication", [[0, 2], [1, 4]], "merge_and_unload"),
        ("trainable_token_indices", [1], "merge_and_unload"),
        ("megatron_config", {"tensor_parallel": 2}, "merge_and_unload"),
        ("corda_config", {"corda_method": "kpm"}, "merge_and_unload"),
        ("loftq_config", {"loftq_bits": 4}, "merge_and_unload"),
        ("lora_ga_config", {"scale": "stable"}, "merge_and_unload"),
        ("ensure_weight_tying", True, "merge_and_unload"),
        ("use_bdlora", {"nblocks": 2}, "merge_and_unload"),
        ("a_setting_of_tomorrow", 1, "merge_and_unload"),
        ("a_setting_of_tomorrow", "on", "merge_and_unload"),
    ],
)  # fmt: skip
def test_what_is_not_known_to_be_neutral_is_refused_by_name(models, plain, tmp_path, key, value, remedy):
    _changed(plain, tmp_path / "changed", {key: value})
    with pytest.raises(ValueError, match=rf"{key}={re.escape(repr(value))} is not supported; .*{remedy}"):
        load_adapter(models[0], tmp_path / "changed")
    assert lora.count(models[0]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"a_setting_of_tomorrow": nothing, "another": nothing} for nothing in (None, False, "", [], {})
    ] + [
        {"init_lora_weights": value} for value in (True, "gaussian", "orthogonal")
    ] + [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
        {"runtime_config": {"ephemeral_gpu_offload": False}, "megatron_core": "megatron.core", "qalora_group_size": 16},
        {"task_type": "CAUSAL_LM", "inference_mode": False, "peft_version": "99.0", "lora_dropout": 0.05},
    ],
)  # fmt: skip
def test_what_is_neutral_passes(models, plain, tmp_path, changes):
    _changed(plain, tmp_path / "changed", changes)
    ours, unchanged = _merged_by_us(models[0], tmp_path / "changed"), _merged_by_us(models[0], plain)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, unchanged[name])


def test_factors_that_the_settings_leave_out_are_refused(models, plain, tmp_path):
    """peft passes over them, so that the adapter would be another one there."""
    for changes in ({"layers_to_transform": [1]}, {"exclude_modules": ["q_proj"]}, {"target_modules": ["up_proj"]}):
        _changed(plain, tmp_path / "changed", changes)
        with pytest.raises(ValueError, match=r"which target_modules and the like in adapter_config\.json leave out"):
            load_adapter(models[0], tmp_path / "changed")
