"""The name table against the published manifests, and its layout changes."""

import dataclasses
import json
import re

import numpy as np
import pytest

from qwen35_jax.config import MTPConfig
from qwen35_jax.hf.names import tensor_table
from qwen35_jax.presets import PRESETS
from tests.conftest import PUBLISHED

# Facts about the published files: number of tensors and of parameters.
TENSORS_AND_PARAMETERS = {
    "0.8b": (488, 873_438_784),
    "2b": (632, 2_274_069_824),
    "4b": (738, 4_659_865_088),
    "9b": (775, 9_653_104_368),
    "27b": (1199, 27_781_427_952),
}


@pytest.mark.parametrize("size", TENSORS_AND_PARAMETERS)
def test_counts_of_the_published_sizes(size):
    table = tensor_table(PRESETS[size])
    assert (len(table), sum(int(np.prod(spec.shape)) for spec in table.values())) == TENSORS_AND_PARAMETERS[size]


@pytest.mark.parametrize("size", ["2B", "0.8B"])
def test_manifest(size):
    manifest = json.loads((PUBLISHED / f"weights_{size}.json").read_text())
    table = tensor_table(PRESETS[size.lower()])
    assert {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in table.items()} == manifest


def test_layouts_return():
    for spec in tensor_table(PRESETS["tiny"]).values():
        array = np.arange(np.prod(spec.shape)).reshape(spec.shape)
        ours = spec.to_ours(array)
        np.testing.assert_array_equal(spec.to_file(ours), array)
        index = tuple(slice(size // 2, size) for size in ours.shape)
        np.testing.assert_array_equal(spec.to_ours(array[spec.index_in_file(index)]), ours[index])


def test_layers_have_their_places_in_stacks():
    table = tensor_table(PRESETS["2b"])
    spec = table["model.language_model.layers.23.self_attn.o_proj.weight"]
    assert (spec.path, spec.index, spec.axes) == (("layers", 3, "self_attn", "o_proj", "weight"), (5,), (1, 0))
    places = {}
    for spec in table.values():
        if spec.index:
            places.setdefault(spec.path, []).append(spec.index)
    for path, found in places.items():
        assert sorted(found) == [(i,) for i in range(24 if path[0] == "vision" else 6)], path


def test_inner_mergers_have_their_own_places():
    config = PRESETS["tiny"]
    deep = dataclasses.replace(config, vision=dataclasses.replace(config.vision, deepstack_visual_indexes=(0, 1)))
    added = [spec for name, spec in tensor_table(deep).items() if name not in tensor_table(config)]
    assert len(added) == 12
    norm = next(spec for spec in added if spec.name == "model.visual.deepstack_merger_list.1.norm.weight")
    assert (norm.path, norm.shape) == (("vision", "deepstack_merger_list", 1, "norm", "weight"), (128,))


def test_without_vision_and_mtp():
    config = PRESETS["tiny"]
    text = dataclasses.replace(config.text, mtp=MTPConfig(0))
    plain = dataclasses.replace(config, text=text, vision=None, architecture="Qwen3_5ForCausalLM")
    names = set(tensor_table(plain))
    assert names == {
        re.sub(r"^model\.language_model", "model", name)
        for name in tensor_table(config)
        if not name.startswith(("model.visual", "mtp"))
    }


def test_mixture_of_experts_is_refused():
    with pytest.raises(ValueError, match="mixture-of-experts layers are not implemented"):
        tensor_table(PRESETS["35b-a3b"])
