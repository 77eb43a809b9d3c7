"""The gradient of a distillation does not depend on micro-batches or meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import make_mesh, named_sharding
from tests.train.conftest import small_config
from train.batch import put_batch
from train.config import Distillation, MtpDistillConfig, TeacherConfig
from train.state import Frozen, split_model
from train.step import make_gradients

WIDTH = 40
SETTINGS = {
    "hidden": Distillation(
        teacher=TeacherConfig(width=WIDTH, dtype="float32"), divergence="jsd", loss_weight=0.5, loss_temperature=2.0
    ),
    "topk": Distillation(teacher=TeacherConfig(signal="topk", k=5), mtp=MtpDistillConfig(target="teacher")),
}


@pytest.fixture(scope="module")
def taught(host_batch):
    """The batch of the other tests with both signals."""
    rng = np.random.default_rng(5)
    shape, rows = host_batch["input_ids"].shape, small_config().text.vocab_size
    states = rng.normal(size=(*shape, WIDTH)).astype(np.float32)
    head = rng.normal(size=(rows, WIDTH)).astype(np.float32) * 0.3
    log_probs = np.asarray(jax.nn.log_softmax(states @ head.T))
    ids = np.argsort(-log_probs, -1)[..., :5].astype(np.int32)
    stored = np.take_along_axis(log_probs, ids, -1)
    top = {
        "teacher_ids": ids,
        "teacher_log_probs": stored.astype(np.float16),
        "teacher_tail": (1 - np.exp(stored).sum(-1)).astype(np.float32),
    }
    return {"hidden": ({**host_batch, "teacher_states": states}, head), "topk": ({**host_batch, **top}, None)}


@pytest.fixture(scope="module")
def numbers(taught):
    """Makes the terms, divided by their counts, and the gradients for a split and a mesh."""
    small = small_config()
    text = dataclasses.replace(
        small.text, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, linear_num_key_heads=2,
        linear_num_value_heads=4,
    )  # fmt: skip
    config = dataclasses.replace(small, text=text, vision=dataclasses.replace(small.vision, out_hidden_size=64))
    graphdef, params, rest = split_model(
        Qwen35(config, dtype=jnp.float32, vision=False, rngs=nnx.Rngs(0)), adapters=False, train_mtp=True
    )

    def numbers(signal, accumulation=1, **axes):
        objective, (batch, head) = SETTINGS[signal], taught[signal]
        made, mesh = objective.make(loss_chunk=5, remat="block"), make_mesh(**axes)
        with jax.set_mesh(mesh):
            placed = jax.tree.map(
                lambda variable: variable.replace(jax.device_put(variable[...], named_sharding(variable, mesh))),
                params,
                is_leaf=lambda x: isinstance(x, nnx.Variable),
            )
            on_mesh = put_batch(batch, accumulation=accumulation, mesh=mesh, fields=objective.batch_fields)
            gradients = jax.jit(make_gradients(graphdef, made, seed=0, dropout=False))
            frozen = Frozen(rest, None if head is None else jnp.asarray(head))
            grads, sums, counts = jax.device_get(gradients(placed, frozen, on_mesh, jnp.int32(0)))
        return {name: sums[name] / max(counts[name], 1) for name in sums}, jax.tree.leaves(grads)

    return numbers


@pytest.fixture(scope="module")
def whole(numbers):
    return {signal: numbers(signal) for signal in SETTINGS}


@pytest.mark.parametrize("signal", SETTINGS)
@pytest.mark.parametrize(
    "split",
    [
        {"accumulation": 2},
        {"accumulation": 4},
        {"fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 2, "context": 2, "tensor": 2},
    ],
    ids=["2 micro-batches", "4 micro-batches", "fsdp", "data, fsdp, tensor", "fsdp, context, tensor"],
)
def test_the_split_of_a_batch_changes_nothing(numbers, whole, signal, split):
    (got, grads), (want, wanted) = numbers(signal, **split), whole[signal]
    for name, value in want.items():
        # The same float32 sums in another order.
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-7, err_msg=name)
    scale = np.sqrt(sum(np.sum(np.square(grad)) for grad in wanted))
    assert scale > 0
    for one, other in zip(grads, wanted, strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * scale
