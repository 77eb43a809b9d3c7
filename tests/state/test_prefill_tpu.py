"""A prefill that fills a state runs the kernels of training, by the TPU compiler's own program."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import abstract_model, compile_abstract, topology_devices
from qwen35_jax.planning.hlo import read_costs
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import make_mesh
from qwen35_jax.state import DecoderState


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
@pytest.mark.slow  # The profiler, in a test of the same process, would crash on a libtpu without a TPU.
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("chunks", [1, 2])
def test_prefill_calls_the_kernels_of_attention_and_delta_rule(chunks, tensor):
    """One period at the 2B's head widths; a second chunk goes on with the state that the first one left."""
    text = dataclasses.replace(PRESETS["2b"].text, num_hidden_layers=4, layer_types=(), hidden_size=256, vocab_size=512)
    text = dataclasses.replace(text, intermediate_size=512)
    config = dataclasses.replace(PRESETS["2b"], text=text, vision=None, architecture="Qwen3_5ForCausalLM")
    mesh = make_mesh(devices=topology_devices("v5e:2x2")[:tensor], tensor=tensor)
    model = abstract_model(lambda: Qwen35(config, rngs=nnx.Rngs(0)), mesh)
    graphdef, weights = nnx.split(model)

    def prefill(weights, input_ids, segment_ids):
        state, outputs = DecoderState.empty(text, 1, 1024, jnp.bfloat16), []
        for chunk in range(chunks):
            part = slice(512 * chunk, 512 * (chunk + 1))
            hidden, state = nnx.merge(graphdef, weights).forward(input_ids[:, part], segment_ids[:, part], state=state)
            outputs.append(hidden)
        # All outputs, or the compiler would drop the attention of every chunk but the last.
        return outputs, state

    ids = jax.ShapeDtypeStruct((1, 512 * chunks), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    compiled = compile_abstract(jax.jit(prefill), weights, ids, ids, mesh=mesh)
    calls = read_costs(compiled.text).without_cycles
    assert sum(count for name, count in calls.items() if "splash_mha_fwd" in name) == chunks
    assert sum(count for name, count in calls.items() if "gated_delta_forward" in name) == 3 * chunks
