"""The terms of a distillation against their definitions over the whole vocabulary, and where they look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.config import Distillation, MtpDistillConfig, MtpLossConfig, RolloutConfig, Supervised, TeacherConfig
from train.objectives.answers import count_quarters, quarters
from train.objectives.terms import shifted_targets

WIDTH = 40
HIDDEN = TeacherConfig(width=WIDTH, dtype="float32")


@pytest.fixture(scope="module")
def batch(host_batch):
    states = np.random.default_rng(2).normal(size=(*host_batch["input_ids"].shape, WIDTH)).astype(np.float32)
    return jax.tree.map(jnp.asarray, {**host_batch, "teacher_states": states})


@pytest.fixture(scope="module")
def teacher_head(model):
    rows = model.head_weight().shape[0]
    return jnp.asarray(np.random.default_rng(3).normal(size=(rows, WIDTH)).astype(np.float32) * 0.3)


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=-1)).astype(np.float64)


def divergence(log_t, log_s, kind, beta=0.5):
    t, s = np.exp(log_t), np.exp(log_s)
    if kind == "forward_kl":
        return np.sum(t * (log_t - log_s), -1)
    if kind == "reverse_kl":
        return np.sum(s * (log_s - log_t), -1)
    if kind == "total_variation":
        return 1 - np.sum(np.minimum(s, t), -1)
    log_m = np.log(beta * t + (1 - beta) * s)
    return beta * np.sum(t * (log_t - log_m), -1) + (1 - beta) * np.sum(s * (log_s - log_m), -1)


def shifted(x, steps):
    return np.concatenate([x[:, steps:], np.zeros_like(x[:, :steps])], 1)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
@pytest.mark.parametrize("target", ["self", "teacher"])
def test_sums_are_those_of_the_whole_distributions(model, mesh, batch, teacher_head, kind, target):
    mtp = MtpDistillConfig(target=target, divergence="total_variation" if kind == "jsd" else "forward_kl", num_steps=2)
    settings = Distillation(teacher=HIDDEN, divergence=kind, mtp=mtp)
    objective = settings.make(loss_chunk=7, remat="none", validates=True)
    inputs = (batch["input_ids"], batch["segment_ids"])
    with jax.set_mesh(mesh):
        got, counts = objective.sums(model, batch, None, teacher_head), objective.counts(batch)
        hidden = model.hidden_states(*inputs)
        log_s = log_softmax(model.logits(*inputs))
        drafts = [log_softmax(x @ model.head_weight().T) for x in model.mtp_forward(hidden, *inputs, num_steps=2)]
    log_t = log_softmax(batch["teacher_states"] @ teacher_head.T)
    assert list(got) == list(objective.weights) and set(counts) == set(got)
    _, weights = shifted_targets(batch, 1)
    for name, value in {
        "divergence": divergence(log_t, log_s, kind),
        "kl_forward": divergence(log_t, log_s, "forward_kl"),
        "kl_reverse": divergence(log_t, log_s, "reverse_kl"),
        "agreement": log_t.argmax(-1) == log_s.argmax(-1),
    }.items():
        # float32 sums of about 100 terms in another order.
        np.testing.assert_allclose(got[name], np.sum(value * np.asarray(weights)), rtol=2e-5, err_msg=name)
    for name in ("divergence", "kl_forward", "kl_reverse"):
        parts = [f"{name}_quarter_{number}" for number in (1, 2, 3, 4)]
        np.testing.assert_allclose(sum(float(got[part]) for part in parts), got[name], rtol=1e-5)
        assert sum(int(counts[part]) for part in parts) == counts[name]
    for step, (log_q, name) in enumerate(zip(drafts, ("mtp_loss", "mtp_loss_2"), strict=True), start=1):
        weights = np.asarray(shifted_targets(batch, 1 + step)[1])
        wanted = shifted(log_s if target == "self" else log_t, step)
        value = divergence(wanted, log_q, mtp.divergence)
        np.testing.assert_allclose(got[name], np.sum(value * weights), rtol=2e-5)
        accepted = 1 - divergence(shifted(log_s, step), log_q, "total_variation")
        np.testing.assert_allclose(got[name.replace("loss", "acceptance")], np.sum(accepted * weights), rtol=2e-5)
        assert counts[name] == counts[name.replace("loss", "acceptance")] == weights.sum() > 0


def gradients(model, mesh, objective, batch, teacher_head=None):
    graphdef, params = nnx.split(model)

    def loss(params):
        sums = objective.sums(nnx.merge(graphdef, params), batch, None, teacher_head)
        return sum(objective.weights[name] * sums[name] for name in sums)

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss))(params)


def test_a_teacher_that_knows_the_next_token_is_the_cross_entropy(model, mesh, batch):
    """All its mass is on one token, so that a shift by one position would show, in the main loss and the MTP loss."""
    targets = shifted_targets(batch, 1)[0]
    signal = {
        "teacher_ids": targets[..., None],
        "teacher_log_probs": jnp.zeros((*targets.shape, 1), jnp.float16),
        "teacher_tail": jnp.zeros(targets.shape),
    }
    tokens = {name: batch[name] for name in ("input_ids", "segment_ids", "trained")} | signal
    settings = Distillation(
        teacher=TeacherConfig(signal="topk", k=1), mtp=MtpDistillConfig(target="teacher", gradient="joint", num_steps=2)
    )
    taught = settings.make(loss_chunk=9, remat="none")
    labelled = Supervised(MtpLossConfig(num_steps=2)).make(loss_chunk=9, remat="none")
    with jax.set_mesh(mesh):
        got, want = taught.sums(model, tokens, None), labelled.sums(model, tokens, None)
    for name in ("mtp_loss", "mtp_loss_2"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    np.testing.assert_allclose(got["divergence"], want["loss"], rtol=1e-5)
    both = (gradients(model, mesh, objective, tokens) for objective in (taught, labelled))
    # Sums of float32 products in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *both)


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(model, mesh, batch):
    """In one program, so that the states are equal bit for bit; the operations' own tests have the gradients."""
    teacher = dataclasses.replace(HIDDEN, width=model.config.text.hidden_size)
    for kind in ("forward_kl", "reverse_kl", "jsd", "total_variation"):
        settings = Distillation(teacher=teacher, divergence=kind, mtp=MtpDistillConfig(weight=0))
        objective = settings.make(loss_chunk=5, remat="none")

        @jax.jit
        def sums(batch, objective=objective):
            states = model.hidden_states(batch["input_ids"], batch["segment_ids"])
            return objective.sums(model, {**batch, "teacher_states": states}, None, model.head_weight())

        with jax.set_mesh(mesh):
            got = sums(batch)
        assert got["divergence"] == got["kl_forward"] == got["kl_reverse"] == 0, kind
        assert got["agreement"] == shifted_targets(batch, 1)[1].sum()


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_what_is_told_of_rollouts_is_about_their_tokens(model, mesh, batch, teacher_head, fraction):
    """The labels count where there are any; the sampled tokens alone are compared with what the engine said."""
    shape, rows = batch["input_ids"].shape, batch["input_ids"].shape[0]
    labelled = np.arange(rows)[:, None] >= fraction * rows
    sampled = np.where(labelled, 0, np.random.default_rng(4).uniform(-7, -5, shape)).astype(np.float32)
    taught = {
        **batch,
        "labelled": jnp.asarray(np.broadcast_to(labelled, shape)),
        "sampled_log_probs": jnp.asarray(sampled),
    }
    settings = Distillation(teacher=HIDDEN, rollouts=RolloutConfig(fraction=fraction), loss_weight=0.5 * (fraction < 1))
    objective = settings.make(loss_chunk=7, remat="none")
    with jax.set_mesh(mesh):
        got, counts = objective.sums(model, taught, None, teacher_head), objective.counts(taught)
        log_s = log_softmax(model.logits(batch["input_ids"], batch["segment_ids"]))
    log_t = log_softmax(batch["teacher_states"] @ teacher_head.T)
    targets, weights = (np.asarray(each) for each in shifted_targets(batch, 1))
    log_s_y, log_t_y = (np.take_along_axis(each, targets[..., None], -1)[..., 0] for each in (log_s, log_t))
    of_loss = weights * labelled if fraction < 1 else weights
    of_rollouts = weights * ~labelled
    np.testing.assert_allclose(got["loss"], -np.sum(of_loss * log_s_y), rtol=1e-5)
    assert counts["loss"] == of_loss.sum() > 0
    gap = np.abs(log_s_y - shifted(sampled, 1))
    np.testing.assert_allclose(got["sampler_gap"], np.sum(of_rollouts * gap), rtol=1e-5)
    assert counts["sampler_gap"] == of_rollouts.sum() > 0
    assert counts["divergence"] == weights.sum() and counts["k1"] == of_rollouts.sum()
    # Differences of terms of about 6.
    want = np.sum(of_rollouts * (log_s_y - log_t_y))
    np.testing.assert_allclose(got["k1"], want, atol=1e-5 * weights.sum())
    assert abs(want - np.sum(weights * (log_s_y - log_t_y))) > 1e-3 or fraction == 1


def test_a_sampled_token_of_probability_1_counts(model, mesh, batch, teacher_head):
    settings = Distillation(teacher=HIDDEN, rollouts=RolloutConfig(), mtp=MtpDistillConfig(weight=0))
    objective = settings.make(loss_chunk=24, remat="none")
    zeros = jnp.zeros(batch["input_ids"].shape)
    sampled = {"labelled": zeros > 0, "sampled_log_probs": zeros}
    with jax.set_mesh(mesh):
        got = objective.sums(model, {**batch, **sampled}, None, teacher_head)
    np.testing.assert_allclose(got["sampler_gap"], got["loss"], rtol=1e-6)
    np.testing.assert_allclose(got["k1"], got["teacher_loss"] - got["loss"], atol=1e-3)


def test_validation_tells_of_drafts_that_no_loss_trains(model, mesh, batch, teacher_head):
    def figures(mtp, **settings):
        made = Distillation(teacher=HIDDEN, mtp=mtp, **settings).make(loss_chunk=24, remat="none", validates=True)
        with jax.set_mesh(mesh):
            return made.sums(model, batch, None, teacher_head), made.counts(batch), made.weights

    got, counts, weights = figures(MtpDistillConfig(weight=0, num_steps=2), has_mtp_head=True)
    want, wanted_counts, _ = figures(MtpDistillConfig(num_steps=2))
    for name in ("mtp_acceptance", "mtp_acceptance_2"):
        assert got[name] == want[name] > 0 and counts[name] == wanted_counts[name]
    assert weights.keys() == got.keys() == counts.keys() and "mtp_loss" not in got
    untrained = Distillation(teacher=HIDDEN, mtp=MtpDistillConfig(weight=0))
    assert "mtp_acceptance" not in untrained.make(loss_chunk=24, remat="none", validates=True).weights
    stepped = dataclasses.replace(untrained, has_mtp_head=True).make(loss_chunk=24, remat="none")
    assert "mtp_acceptance" not in stepped.weights


def test_a_stored_top_k_tells_what_it_can(model, mesh, batch, teacher_head):
    log_t = log_softmax(batch["teacher_states"] @ teacher_head.T)
    k = 9
    ids = np.argsort(-log_t, -1)[..., :k]
    top = np.take_along_axis(log_t, ids, -1)
    signal = {
        "teacher_ids": jnp.asarray(ids, jnp.int32),
        "teacher_log_probs": jnp.asarray(top, jnp.float16),
        "teacher_tail": jnp.asarray(1 - np.exp(top).sum(-1), jnp.float32),
    }
    tokens = {name: batch[name] for name in ("input_ids", "segment_ids", "trained")} | signal
    options = {"loss_chunk": 7, "remat": "none", "validates": True}
    made = Distillation(teacher=TeacherConfig(signal="topk", k=k)).make(**options)
    exact = Distillation(teacher=dataclasses.replace(HIDDEN, k=k)).make(**options)
    with jax.set_mesh(mesh):
        got, want = made.sums(model, tokens, None), exact.sums(model, batch, None, teacher_head)
    assert got.keys() == made.weights.keys() == made.counts(tokens).keys()
    for name in ("top_k_overlap", "student_entropy", "agreement", "mtp_acceptance", "loss"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, err_msg=name)
    weights = np.asarray(shifted_targets(batch, 1)[1])
    targets = np.asarray(shifted_targets(batch, 1)[0])
    known = (ids == targets[..., None]).any(-1)
    assert got["targets_in_top_k"] == np.sum(weights * known)
    assert 0 < got["teacher_loss_bound"] < want["teacher_loss"]
    assert not {"teacher_loss", "teacher_entropy", "kl_reverse"} & got.keys()


def test_only_the_mtp_block_learns_from_the_model_itself(model, mesh, batch, teacher_head):
    objective = Distillation(teacher=HIDDEN, divergence_weight=1e-30).make(loss_chunk=24, remat="none")
    grads = nnx.to_flat_state(gradients(model, mesh, objective, batch, teacher_head))
    for path, value in grads:
        largest = np.abs(np.asarray(value)).max()
        assert (largest > 1e-8) == (path[0] == "mtp"), path


def test_quarters_follow_the_targets_of_each_document():
    segment_ids = jnp.array([[1] * 10 + [2] * 5 + [0]])
    trained = jnp.array([[0, 0] + [1] * 8 + [0, 1, 1, 1, 1] + [0]], bool)
    batch = {"input_ids": segment_ids, "segment_ids": segment_ids, "trained": trained}
    weights = np.asarray(shifted_targets(batch, 1)[1])[0] > 0
    assert np.asarray(quarters(batch))[0][weights].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3]
    assert [int(count) for count in count_quarters(batch)] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distillation(divergence_weight=0), "divergence_weight=0 must be positive"),
        (lambda: Distillation(loss_weight=-1), "loss_weight=-1 is negative"),
        (lambda: Distillation(loss_temperature=0), "loss_temperature=0 must be positive"),
        (lambda: Distillation(beta=0.3), "beta=0.3 belongs to divergence='jsd', but the divergence is forward_kl"),
        (lambda: Distillation(divergence="jsd", beta=1.0), "beta=1.0 must lie strictly between 0 and 1"),
        (
            lambda: Distillation(teacher=TeacherConfig(signal="topk"), divergence="reverse_kl"),
            "divergence='reverse_kl' needs the teacher's whole distribution",
        ),
        (
            lambda: Distillation(teacher=TeacherConfig(signal="topk"), rollouts=RolloutConfig()),
            "divergence='reverse_kl' needs the teacher's whole distribution",
        ),
        (
            lambda: Distillation(teacher=TeacherConfig(signal="topk"), loss_temperature=2.0),
            "loss_temperature=2 needs the teacher's whole distribution",
        ),
        (
            lambda: Distillation(
                teacher=TeacherConfig(signal="topk"),
                mtp=MtpDistillConfig(target="teacher", divergence="total_variation"),
            ),
            "mtp.divergence='total_variation' with mtp.target=teacher needs",
        ),
        (
            lambda: Distillation(teacher=TeacherConfig(store="stores/x"), rollouts=RolloutConfig()),
            "teacher.store='stores/x' cannot hold the signal for answers that are not written yet",
        ),
        (lambda: Distillation(loss_weight=0.5, rollouts=RolloutConfig()), "loss_weight=0.5 needs labels"),
        (lambda: MtpDistillConfig(gradient="joint"), "mtp.target=self makes the model its own target"),
        (
            lambda: MtpDistillConfig(target="labels", divergence="total_variation"),
            "mtp.divergence='total_variation' is never used",
        ),
        (lambda: TeacherConfig(k=0), "teacher.k=0 must be at least 1"),
        (lambda: TeacherConfig(path="a", own_base=True), "teacher.own_base takes the student's own base"),
        (lambda: TeacherConfig(adapter="a"), "teacher.adapter='a' needs its base"),
    ],
)
def test_settings_that_contradict_each_other(make, message):
    with pytest.raises(ValueError, match=message):
        make()
