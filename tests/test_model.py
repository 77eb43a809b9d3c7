"""The whole model against transformers in float32, and against itself: packed, padded, split into several calls."""

import functools
import inspect
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import qwen35_jax
from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.layers.recompute import REMAT, Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.state import DecoderState
from tests.reference import GAIN, SLOW_DECAY, by_reference_name, reference_model, reference_mtp, tiny_config
from tests.reference import write_checkpoint as write_reference

CASES = {
    "three value heads a key head, tied": {},
    "two value heads a key head, untied": {"linear_num_value_heads": 4, "num_key_value_heads": 1, "tied": False},
    "one value head a key head, wide heads, one period": {
        "linear_num_value_heads": 2,
        "linear_value_head_dim": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
    },
}
# Every length meets one case, and every case a length within a chunk and one over several.
LENGTHS = [(case, length) for case in CASES for length in ((1, 63, 65, 200) if not CASES[case] else (1, 200))]
MTP_LENGTHS = [(case, length) for case in CASES for length in ((2, 63, 65) if not CASES[case] else (65,))]


def tokens(length: int, batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + length).integers(0, 512, (batch, length))


@pytest.fixture(scope="module")
def pairs():
    return {}


@pytest.fixture(params=CASES)
def pair(request, pairs, tmp_path_factory):
    """A transformers model, its MTP layer, and ours loaded from the checkpoint they wrote; each case is made once."""
    if request.param not in pairs:
        config, folder = tiny_config(**CASES[request.param]), tmp_path_factory.mktemp("checkpoint")
        reference, mtp = reference_model(config), reference_mtp(config)
        write_reference(reference, folder, mtp)
        pairs[request.param] = reference, mtp, qwen35_jax.load(folder, dtype="float32", vision=False)
    return pairs[request.param]


def abstract(**settings) -> Qwen35:
    """Ours alone, in shapes. Periods of two DeltaNet layers and one of attention compile faster than the usual ones."""
    config = tiny_config(num_hidden_layers=6, layer_types=(LINEAR, LINEAR, FULL) * 2)
    return nnx.eval_shape(lambda: Qwen35(config, **{"dtype": "float32"} | settings, vision=False, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    """Ours alone: random weights that all matter and keep rounding small, and heads that forget slowly."""
    graphdef, state = nnx.split(abstract())
    for path, weight in nnx.to_flat_state(state):
        noise = np.random.default_rng(zlib.crc32(str(path).encode())).normal(size=weight.shape).astype(np.float32)
        if path[-1] == "A_log":
            noise[:, 0] = np.log(SLOW_DECAY)
        elif path[-1] == "dt_bias":
            noise = np.ones_like(noise)
        elif "norm" in path[-2]:
            noise = 0.2 * noise + (path[-3:-1] == ("linear_attn", "norm"))
        else:
            noise *= 0.3 if path[-2] in ("conv1d", "embed_tokens") else GAIN * weight.shape[-2] ** -0.5
        weight.set_value(jnp.asarray(noise))
    return nnx.merge(graphdef, state)


def lm_loss(model, ids, weights):
    """Mean next-token loss over ``weights``, through plain logits."""
    logp = jax.nn.log_softmax(model.logits(ids)[:, :-1])
    return -(jnp.take_along_axis(logp, ids[:, 1:, None], -1)[..., 0] * weights).sum() / weights.sum()


@pytest.mark.parametrize(("pair", "length"), LENGTHS, indirect=["pair"])
def test_logits_match_transformers(pair, length):
    import torch

    reference, _, ours = pair
    ids = tokens(length)
    with torch.no_grad():
        want = reference(input_ids=torch.as_tensor(ids)).logits.numpy()
    # Logits are of order 1; eight layers of float32 in another order of summation.
    np.testing.assert_allclose(ours.logits(ids), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [65])
def test_gradients_match_autograd(pair, length):
    import torch

    reference, _, ours = pair
    ids = tokens(length)
    reference.zero_grad(set_to_none=True)
    reference(input_ids=torch.as_tensor(ids), labels=torch.as_tensor(ids)).loss.backward()
    want = {n: p.grad.numpy() for n, p in reference.named_parameters() if p.grad is not None}

    graphdef, state = nnx.split(ours)
    weights = jnp.ones((2, length - 1))
    grads = jax.grad(lambda s: lm_loss(nnx.merge(graphdef, s, copy=True), ids, weights))(state)
    got = by_reference_name(
        {path: leaf[...] for path, leaf in nnx.to_flat_state(grads) if path[0] != "mtp"}, ours.config.text.period
    )
    assert set(got) == set(want)
    for name, gradient in want.items():
        # Relative to the size of the whole tensor: single entries near zero carry only rounding.
        distance = np.linalg.norm(got[name] - gradient) / np.linalg.norm(gradient)
        assert distance < 1e-4, f"{name}: {distance:.2e}"


def test_three_positions_match_transformers(pair):
    import torch

    reference, _, ours = pair
    ids = tokens(40)
    positions = np.sort(np.random.default_rng(0).integers(0, 40, (3, 2, 40)), axis=-1)
    with torch.no_grad():
        want = reference(input_ids=torch.as_tensor(ids), position_ids=torch.as_tensor(positions)).logits.numpy()
    np.testing.assert_allclose(ours.logits(ids, position_ids=positions), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("pair", "length"), MTP_LENGTHS, indirect=["pair"])
def test_mtp_logits_match_transformers(pair, length):
    import torch

    reference, mtp, ours = pair
    ids = tokens(length)
    text = reference.model.language_model
    with torch.no_grad():
        hidden = text(input_ids=torch.as_tensor(ids)).last_hidden_state[:, :-1]
        positions = torch.arange(length - 1)[None]
        mask = torch.full((length - 1, length - 1), -torch.inf).triu(1)[None, None]
        ahead = mtp(
            text.embed_tokens(torch.as_tensor(ids[:, 1:])), hidden, text.rotary_emb(hidden, positions), mask, None, None
        )
        want = reference.lm_head(ahead).numpy()
    got = ours.mtp_logits(ids)
    np.testing.assert_allclose(got[:, :-1], want, rtol=0, atol=1e-4)


def test_later_mtp_steps_feed_the_output_back(model):
    ids = tokens(9)
    hidden = model.hidden_states(ids)
    run = nnx.jit(Qwen35.mtp_forward, static_argnames="num_steps")
    first, second = run(model, hidden, jnp.asarray(ids), num_steps=2)
    # The second step on the first step's output, with embeddings one token further: the same head again.
    (again,) = run(model, first, jnp.asarray(np.pad(ids[:, 1:], ((0, 0), (0, 1)))))
    np.testing.assert_allclose(again[:, :-2], second[:, :-2], rtol=0, atol=1e-6)
    assert np.abs(second - first).max() > 0.01


# Documents of 1 token and twice 70; 70 spans a chunk of the delta rule, and each border lies within one.
DOCUMENTS = (1, 70, 70)
LENGTH = 158
LAYOUTS = {
    "packed": (1, 2, 3),
    "padding on the right": (1, 2, 3, 0),
    "padding on the left": (0, 1, 2, 3),
    "padding between": (1, 0, 2, 0, 3, 0),
}


def packed_sequence(layout) -> tuple[np.ndarray, np.ndarray]:
    """One sequence of the documents in order. Each 0 in ``layout`` stands for padding, whose tokens are arbitrary."""
    padding = tokens(5, 1, seed=9)[0]
    parts = [padding if d == 0 else tokens(DOCUMENTS[d - 1], 1, seed=d)[0] for d in layout]
    parts = [(part, np.full(len(part), d)) for part, d in zip(parts, layout, strict=True)]
    ids, segments = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.pad(ids, (0, LENGTH - len(ids)))[None], np.pad(segments, (0, LENGTH - len(segments)))[None]


@functools.cache
def compiled(graphdef, remat: Remat):
    """Both kinds of logits, the sum of both losses, and its gradient: one program for each shape."""

    @jax.jit
    def run(state, ids, segments):
        def loss(state):
            model = nnx.merge(graphdef, state, copy=True)
            hidden, _ = model.forward(ids, segments, remat=remat)
            (ahead,) = model.mtp_forward(hidden, ids, segments, remat=remat)
            total, both = 0.0, [vectors @ model.head_weight().T for vectors in (hidden, ahead)]
            for steps, logits in enumerate(both, start=1):
                logp = jax.nn.log_softmax(logits)[:, :-steps]
                targets = (segments[:, steps:] == segments[:, :-steps]) & (segments[:, steps:] > 0)
                total -= (jnp.take_along_axis(logp, ids[:, steps:, None], -1)[..., 0] * targets).sum()
            return total, both

        return jax.value_and_grad(loss, has_aux=True)(state)

    return run


@pytest.fixture(scope="module")
def alone(model):
    """Logits of each document in a call of its own, the sum of all losses, and its gradient."""
    graphdef, state = nnx.split(model)
    logits, loss, gradient = [], 0.0, None
    for document, length in enumerate(DOCUMENTS, start=1):
        ids = jnp.asarray(tokens(length, 1, seed=document))
        (value, both), grads = compiled(graphdef, "none")(state, ids, jnp.ones_like(ids))
        logits.append([part[0] for part in both])
        loss, gradient = loss + value, grads if gradient is None else jax.tree.map(jnp.add, gradient, grads)
    return logits, loss, gradient


@pytest.mark.parametrize(("layout", "remat"), zip(LAYOUTS, itertools.cycle(REMAT[1:])))
def test_packed_equals_alone(model, alone, layout, remat):
    """The packed side also runs with the policies of rematerialization, which must not change any number."""
    ids, segments = map(jnp.asarray, packed_sequence(LAYOUTS[layout]))
    wanted, wanted_loss, wanted_gradient = alone
    graphdef, state = nnx.split(model)
    (loss, (logits, mtp_logits)), gradient = compiled(graphdef, remat)(state, ids, segments)
    for document, (want, want_mtp) in enumerate(wanted, start=1):
        own = np.flatnonzero(segments[0] == document)
        # The same float32 sums over other chunk borders.
        np.testing.assert_allclose(logits[0, own], want, rtol=0, atol=1e-5)
        np.testing.assert_allclose(mtp_logits[0, own][:-2], want_mtp[:-2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    gradient = dict(nnx.to_flat_state(gradient))
    for path, want in nnx.to_flat_state(wanted_gradient):
        distance = jnp.linalg.norm(gradient[path][...] - want[...]) / jnp.linalg.norm(want[...])
        assert distance < 1e-5, f"{path}: {distance:.2e}"


def whole(model, lines):
    """Returns what the model makes of each line; the tokens behind its end, which it cannot see, are arbitrary."""
    hidden = model.hidden_states(np.stack([np.resize(line, 48) for line in lines]))
    return [np.asarray(each[: len(line)]) for each, line in zip(hidden, lines, strict=True)]


@functools.cache
def continued(graphdef):
    """Compiles a call that goes on with a state."""
    return jax.jit(lambda weights, *args: nnx.merge(graphdef, weights).forward(*args))


def go_on(model, state, ids, segments=None):
    graphdef, weights = nnx.split(model)
    segments = None if segments is None else jnp.asarray(segments)
    return continued(graphdef)(weights, jnp.asarray(ids), segments, None, state)


# Parts of few lengths, each of which is a program: 158, 64, 92 and 1.
SPLITS = [(0, LENGTH), (0, 64, 156, 157, LENGTH), (0, 1, 93, 94, LENGTH)]


@pytest.mark.parametrize("splits", SPLITS, ids=str)
def test_any_split_with_a_state_equals_one_call(model, splits):
    ids, segments = packed_sequence(LAYOUTS["padding between"])
    want = model.hidden_states(ids, segments)
    state, outputs = DecoderState.empty(model.config.text, 1, 256, jnp.float32), []
    for first, last in itertools.pairwise(splits):
        hidden, state = go_on(model, state, ids[:, first:last], segments[:, first:last])
        outputs.append(hidden)
    real = segments[0] > 0
    np.testing.assert_allclose(np.concatenate(outputs, axis=1)[0, real], want[0, real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_and_steps_equal_one_forward(model, side):
    """Two sequences of unequal prompts, padded on either side, then token by token."""
    prompts, steps = (5, 16), 6
    lines = [tokens(p + steps, 1)[0] for p in prompts]
    padded = [(16 - p, 0) if side == "left" else (0, 16 - p) for p in prompts]
    ids = np.stack([np.pad(line[:p], pad) for line, p, pad in zip(lines, prompts, padded, strict=True)])
    segments = np.stack([np.pad(np.ones(p, int), pad) for p, pad in zip(prompts, padded, strict=True)])
    state = DecoderState.empty(model.config.text, 2, 64, jnp.float32)
    hidden, state = go_on(model, state, ids, segments)
    outputs = [[hidden[i, segments[i] > 0]] for i in range(2)]
    for t in range(steps):
        ids = np.stack([line[p + t : p + t + 1] for line, p in zip(lines, prompts, strict=True)])
        hidden, state = go_on(model, state, ids)
        for i in range(2):
            outputs[i].append(hidden[i])
    for i, want in enumerate(whole(model, lines)):
        np.testing.assert_allclose(np.concatenate(outputs[i]), want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(state.next_position, [p + steps for p in prompts])
    slots = [16 + steps] * 2 if side == "left" else [p + steps for p in prompts]
    np.testing.assert_array_equal(state.lengths, slots)


def test_sequences_of_a_state_advance_independently(model):
    """Two sequences take another number of tokens in each call; what one takes does not change the other."""
    lines = [tokens(48, 1, seed=seed)[0] for seed in (1, 2)]
    taken, state = [0, 0], DecoderState.empty(model.config.text, 2, 64, jnp.float32)
    got = [[], []]
    for counts in ((3, 16), (16, 1), (1, 1), (0, 9), (7, 16)):
        width = 16 if max(counts) > 1 else 1  # two programs
        mine = [line[a : a + n] for line, a, n in zip(lines, taken, counts, strict=True)]
        ids = np.stack([np.pad(part, (0, width - len(part))) for part in mine])
        segments = np.stack([np.pad(np.ones(n, int), (0, width - n)) for n in counts])
        hidden, state = go_on(model, state, ids, segments)
        for i, n in enumerate(counts):
            got[i].append(hidden[i, :n])
            taken[i] += n
    np.testing.assert_array_equal(state.lengths, taken)
    for i, want in enumerate(whole(model, lines)):
        np.testing.assert_allclose(np.concatenate(got[i]), want[: taken[i]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("delta_rule", ["associative", "chunked"])
def test_every_delta_rule_gives_the_same_numbers(model, delta_rule):
    ids, segments = map(jnp.asarray, packed_sequence(LAYOUTS["packed"]))
    other = nnx.merge(nnx.graphdef(abstract(delta_rule=delta_rule)), nnx.state(model))
    assert other.layers[0].linear_attn.delta_rule == delta_rule
    # The same float32 sums in another order.
    np.testing.assert_allclose(
        other.hidden_states(ids, segments), model.hidden_states(ids, segments), rtol=0, atol=1e-5
    )


def test_weights_are_stored_and_results_returned_in_the_promised_dtypes():
    model = abstract(dtype=jnp.bfloat16)
    kept = {path[-2:] for path, v in nnx.to_flat_state(nnx.state(model)) if v.dtype == jnp.float32}
    assert kept == {("linear_attn", "A_log"), ("norm", "weight")}
    assert model.norm.weight.dtype == jnp.bfloat16
    assert nnx.eval_shape(lambda model: model.hidden_states(tokens(5)), model).dtype == jnp.bfloat16
    assert nnx.eval_shape(lambda model: model.logits(tokens(5)), model).dtype == jnp.float32


def test_unusable_input_is_refused(model):
    with pytest.raises(ValueError, match=r"input_ids has shape \(5,\)"):
        model.logits(np.zeros(5, int))
    with pytest.raises(ValueError, match="segment_ids has shape"):
        model.logits(np.zeros((1, 5), int), np.ones((1, 4), int))
    with pytest.raises(ValueError, match="position_ids has shape"):
        model.logits(np.zeros((1, 5), int), position_ids=np.ones((2, 1, 5), int))
    init = inspect.unwrap(Qwen35.__init__)  # without the type checks of --jaxtyping-packages, which come first
    with pytest.raises(ValueError, match="delta_rule='scan' is unknown; choose one of auto, chunked"):
        init(None, tiny_config(), delta_rule="scan", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="mixture-of-experts"):
        Qwen35(PRESETS["35b-a3b"], rngs=nnx.Rngs(0))
    headless = Qwen35(tiny_config(mtp=type(model.config.text.mtp)(0)), dtype="float32", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no MTP head"):
        headless.mtp_logits(tokens(4))
