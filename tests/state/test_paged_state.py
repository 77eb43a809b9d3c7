"""The memory of an engine's slots: chunks and windows give what one forward pass gives, whatever was rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.state import PagedKeyValues, PagedState, SlotDelta, empty_layers

CONFIG = PRESETS["tiny"]
TEXT = CONFIG.text
SLOTS, WINDOW, PAGE, PAGES_PER_SLOT, CHUNK = 3, 3, 4, 6, 8
NUM_PAGES = 1 + SLOTS * PAGES_PER_SLOT
# Float32 on both sides; chunked and sequential sums of a state differ in their last digits.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def model() -> Qwen35:
    with nnx.use_eager_sharding(False):
        return Qwen35(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def programs(model):
    """The two programs of an engine, without sampling: a chunk of one slot, and a window of all slots."""
    graph, weights = nnx.split(model)

    @jax.jit
    def read_chunk(layers, mtp, slot, ids, next_ids, segment_ids, table, length):
        model = nnx.merge(graph, weights)
        taken = tuple(x.take(slot) if isinstance(x, SlotDelta) else x for x in layers)
        taken = tuple(
            jax.tree.map(lambda a: jnp.where(length[0] == 0, 0, a), x) if not isinstance(x, PagedKeyValues) else x
            for x in taken
        )
        none = jnp.zeros_like(length)
        hidden, state = model.forward(ids, segment_ids, state=PagedState(taken, table, length, none, on_grid=True))
        _, drafting = model.draft_forward(hidden, next_ids, segment_ids, PagedState((mtp,), table, length, none, True))
        back = tuple(
            old.put(slot, new) if isinstance(old, SlotDelta) else new
            for old, new in zip(layers, state.layers, strict=True)
        )
        return hidden, back, drafting.layers[0]

    @jax.jit
    def read_window(layers, mtp, ids, next_ids, table, lengths, num_past):
        model = nnx.merge(graph, weights)
        hidden, state = model.forward(ids, state=PagedState(layers, table, lengths, num_past))
        ahead, drafting = model.draft_forward(hidden, next_ids, None, PagedState((mtp,), table, lengths, num_past))
        return hidden, ahead, state.layers, drafting.layers[0]

    return read_chunk, read_window


def poisoned():
    """All memory as a crowd may have left it: anything."""
    layers = empty_layers(
        TEXT,
        slots=SLOTS,
        window=WINDOW,
        num_pages=NUM_PAGES,
        page_size=PAGE,
        dtype=jnp.float32,
        num_heads=TEXT.num_key_value_heads,
    )
    mtp = PagedKeyValues.empty(TEXT, NUM_PAGES, PAGE, jnp.float32, num_layers=1)
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), (layers, mtp))


def table_of(rng):
    pages = 1 + rng.permutation(NUM_PAGES - 1).reshape(SLOTS, PAGES_PER_SLOT)
    return jnp.asarray(pages, jnp.int32)


def run(programs, texts, lengths, accepted_by_step, seed):
    """Reads the first ``lengths`` tokens of each text in chunks, the rest in windows of which some are rejected.

    Returns for each slot the trunk's and the MTP head's vectors of its tokens after the chunks.
    """
    read_chunk, read_window = programs
    rng = np.random.default_rng(seed)
    (layers, mtp), table = poisoned(), table_of(rng)
    for slot in range(SLOTS):
        for start in range(0, max(lengths[slot], 1), CHUNK):
            real = min(CHUNK, lengths[slot] - start)
            ids, after = np.zeros((2, 1, CHUNK), np.int32)
            ids[0, :real], after[0, :real] = (
                texts[slot][start : start + real],
                texts[slot][start + 1 : start + real + 1],
            )
            segments = (np.arange(CHUNK) < real).astype(np.int32)[None]
            where = jnp.asarray([slot]), table[slot : slot + 1], jnp.asarray([start], jnp.int32)
            _, layers, mtp = read_chunk(layers, mtp, where[0], ids, after, segments, *where[1:])
    lengths, num_past = np.array(lengths, np.int32), np.zeros(SLOTS, np.int32)
    hiddens, aheads = [[] for _ in range(SLOTS)], [[] for _ in range(SLOTS)]
    for accepted in accepted_by_step:
        # Tokens beyond those accepted are drafts that turn out wrong.
        ids, after = rng.integers(0, TEXT.vocab_size, (2, SLOTS, WINDOW))
        for slot, count in enumerate(accepted):
            here = lengths[slot]
            ids[slot, :count], after[slot, :count] = (
                texts[slot][here : here + count],
                texts[slot][here + 1 : here + 1 + count],
            )
        hidden, ahead, layers, mtp = read_window(
            layers, mtp, jnp.asarray(ids), jnp.asarray(after), table, jnp.asarray(lengths), jnp.asarray(num_past)
        )
        for slot, count in enumerate(accepted):
            hiddens[slot].append(np.asarray(hidden[slot, :count]))
            aheads[slot].append(np.asarray(ahead[slot, :count]))
        num_past = np.array(accepted, np.int32)
        lengths = lengths + num_past
    return [np.concatenate(x) for x in hiddens], [np.concatenate(x) for x in aheads]


ACCEPTED = [(1, 3, 2), (2, 1, 3), (3, 1, 1), (1, 2, 3)]


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(1).integers(0, TEXT.vocab_size, (SLOTS, 24)).tolist()


def test_chunks_and_windows_equal_one_forward_pass(model, programs, texts):
    lengths = [0, 8, 13]
    hiddens, aheads = run(programs, texts, lengths, ACCEPTED, seed=2)
    whole = np.asarray(model.hidden_states(texts))
    graph, weights = nnx.split(model)
    ids = jnp.asarray(texts)
    (ahead,) = jax.jit(lambda w, h: nnx.merge(graph, w).mtp_forward(h, ids))(weights, jnp.asarray(whole))
    for slot, start in enumerate(lengths):
        stop = start + sum(accepted[slot] for accepted in ACCEPTED)
        np.testing.assert_allclose(hiddens[slot], whole[slot, start:stop], **CLOSE)
        np.testing.assert_allclose(aheads[slot], np.asarray(ahead)[slot, start:stop], **CLOSE)


def test_a_slot_is_equal_bit_for_bit_whatever_the_others_hold_and_was_rejected(programs, texts):
    lengths = [5, 8, 13]
    alone, alone_ahead = run(programs, texts, lengths, ACCEPTED, seed=2)
    others = [texts[0], texts[2][::-1], texts[1]]
    crowd, crowd_ahead = run(programs, others, [5, 11, 2], [(1, 1, 1), (2, 3, 2), (3, 2, 1), (1, 1, 3)], seed=3)
    assert np.isfinite(alone[0]).all() and np.isfinite(alone_ahead[0]).all()
    np.testing.assert_array_equal(crowd[0], alone[0])
    np.testing.assert_array_equal(crowd_ahead[0], alone_ahead[0])
