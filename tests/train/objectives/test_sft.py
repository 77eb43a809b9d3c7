"""The loss terms against their definitions, and where the gradient of the MTP loss goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.config import MtpLossConfig, Supervised
from train.objectives.terms import shifted_targets


@pytest.mark.parametrize("offset", [1, 2, 3, 30])
def test_targets_stay_within_their_document(host_batch, offset):
    ids, segments, trained = (host_batch[name] for name in ("input_ids", "segment_ids", "trained"))
    want_targets, want_weights = np.zeros_like(ids), np.zeros(ids.shape, np.float32)
    for row in range(ids.shape[0]):
        for i in range(ids.shape[1] - offset):
            j = i + offset
            want_targets[row, i] = ids[row, j]
            want_weights[row, i] = segments[row, i] == segments[row, j] != 0 and trained[row, j]
    targets, weights = shifted_targets(jax.tree.map(jnp.asarray, host_batch), offset)
    np.testing.assert_array_equal(targets, want_targets)
    np.testing.assert_array_equal(weights, want_weights)


@pytest.mark.parametrize(("weight", "num_steps", "names"), [
    (0.0, 1, ["loss"]),
    (0.2, 1, ["loss", "mtp_loss"]),
    (0.2, 2, ["loss", "mtp_loss", "mtp_loss_2"]),
])  # fmt: skip
def test_terms_and_weights(weight, num_steps, names):
    objective = Supervised(MtpLossConfig(weight, num_steps)).make(loss_chunk=8, remat="none")
    assert list(objective.weights) == names
    assert objective.weights["loss"] == 1.0
    assert all(objective.weights[name] == weight / num_steps for name in names[1:])


def test_sums_are_the_cross_entropies_of_the_logits(model, mesh, host_batch):
    batch = jax.tree.map(jnp.asarray, host_batch)
    objective = Supervised(MtpLossConfig()).make(loss_chunk=7, remat="none")
    with jax.set_mesh(mesh):
        got, counts = objective.sums(model, batch, None), objective.counts(batch)
        inputs = (batch["input_ids"], batch["segment_ids"])
        logits = {"loss": model.logits(*inputs), "mtp_loss": model.mtp_logits(*inputs)}
    for offset, name in enumerate(("loss", "mtp_loss"), start=1):
        targets, weights = shifted_targets(batch, offset)
        nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[name])), np.asarray(targets)[..., None], -1)
        # float32 sums of about 100 terms in another order.
        np.testing.assert_allclose(got[name], np.sum(nll[..., 0] * weights), rtol=1e-5)
        assert counts[name] == np.sum(weights) > 0


@pytest.fixture(scope="module")
def reached(model, mesh, host_batch):
    """For each gradient switch, the groups of parameters that the MTP loss alone has a gradient for."""
    batch = jax.tree.map(lambda x: jnp.asarray(x[:2]), host_batch)
    graphdef, state = nnx.split(model)

    def groups(switch):
        objective = Supervised(MtpLossConfig(gradient=switch)).make(loss_chunk=32, remat="none")

        def loss(state):
            return objective.sums(nnx.merge(graphdef, state, copy=True), batch, None)["mtp_loss"]

        with jax.set_mesh(mesh):
            grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(state))
        return {path[0] for path, grad in grads if np.any(grad[...])}

    return groups


@pytest.mark.parametrize(
    ("switch", "want"),
    [
        ("joint", {"embed_tokens", "layers", "norm", "mtp"}),
        ("detach_trunk", {"embed_tokens", "mtp"}),
        ("head_only", {"mtp"}),
    ],
)
def test_gradient_switch(reached, switch, want):
    assert reached(switch) == want
