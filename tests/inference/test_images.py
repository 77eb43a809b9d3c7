"""The engine with images and videos: what it writes is what the model says, alone and in any crowd."""

import inspect

import jax
import numpy as np
import pytest
from flax import nnx

from qwen35_jax.inference.decode import decode
from qwen35_jax.inference.prefill import prefill
from qwen35_jax.inference.prompts import read_prompt
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.sharding import make_mesh
from tests.inference.engines import LIMITS, MIXED, assert_is_idle, make_engine
from tests.vision.mixes import make_mix

GREEDY = SamplingParams(logprobs=3, ignore_end=True)
# Numbers are tokens of text, tuples are grids of images, and of a video where they have several frames. A chunk is 16
# tokens: images begin and end inside chunks, fill whole ones, and stand at their borders.
PARTS = [
    [5, (1, 4, 6), 3],
    [(1, 8, 12), 1],
    [15, (1, 8, 10), 4, (3, 4, 4), 20],
    [30],
    [7, (2, 6, 4), 2, (1, 2, 2), 9],
    [16, (1, 8, 8), 16],
    [14, (1, 2, 4), 40, (1, 4, 4), 3],
    [1],
]


@pytest.fixture(scope="module")
def mixes(seeing_model):
    return [make_mix(seeing_model.config, parts, seed) for seed, parts in enumerate(PARTS)]


def inputs_of(mix):
    """The inputs of a processor; without images their ids alone."""
    return {"input_ids": mix.input_ids} | ({"pixels": mix.pixels, "grids": mix.grids} if len(mix.grids) else {})


def logits_after(model, mix, tokens):
    """What the model says of each token that was written after a prompt."""
    text, length = np.zeros((1, 128), np.int64), mix.input_ids.shape[1]
    text[0, : length + len(tokens)] = [*mix.input_ids[0], *tokens]
    pictures = {"pixels": mix.pixels, "grids": mix.grids} if len(mix.grids) else {}
    return np.asarray(model.logits(text, **pictures))[0, length - 1 :][: len(tokens)].astype(np.float64)


@pytest.mark.parametrize("drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_greedy_text_is_what_the_model_finds_most_likely(seeing_model, mixes, drafts):
    engine = make_engine(seeing_model, drafts, poison=True)
    done = engine.generate(list(map(inputs_of, mixes)), sampling=GREEDY, max_new_tokens=LIMITS)
    for mix, limit, completion in zip(mixes, LIMITS, done, strict=True):
        logits, tokens = logits_after(seeing_model, mix, completion.token_ids), completion.token_ids
        # Another order of sums may choose between two words that are this close.
        assert np.all(logits.max(axis=-1) - logits[np.arange(limit), tokens] < 1e-4)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        told = [x.model for x in completion.logprobs]
        np.testing.assert_allclose(told, logprobs[np.arange(limit), tokens], rtol=1e-4, atol=1e-4)
    assert engine.metrics.tower_runs == 6
    assert engine.metrics.patches == sum(len(mix.pixels) for mix in mixes)
    assert_is_idle(engine)


def test_images_change_what_is_written(seeing_model, mixes):
    """Otherwise the other tests would show nothing."""
    mix = mixes[2]
    other = {"input_ids": mix.input_ids, "pixels": mix.pixels[::-1].copy(), "grids": mix.grids}
    engine = make_engine(seeing_model, 2)
    first, second = engine.generate([inputs_of(mix), other], max_new_tokens=8)
    assert first.token_ids != second.token_ids


def test_the_head_drafts_from_images(seeing_model, mixes):
    """The first draft of each slot is what the MTP head of the model says after the same text."""
    engine = make_engine(seeing_model, 2, steps_per_call=1)
    runner, prompts = engine._runner, dict(enumerate(mixes[:4]))
    for mix in prompts.values():
        engine.submit(inputs_of(mix), max_new_tokens=20)
    for _ in range(3):
        engine.step()
    runner._take_call()
    drafts = np.asarray(runner._slots.drafts.tokens)
    for tenant in runner.scheduler.writers:
        mix, tokens = prompts[tenant.request.number], tenant.request.transcript.tokens
        text, length = np.zeros((1, 128), np.int64), mix.input_ids.shape[1] + len(tokens)
        text[0, :length] = [*mix.input_ids[0], *tokens]
        pictures = {"pixels": mix.pixels, "grids": mix.grids} if len(mix.grids) else {}
        ahead = np.asarray(seeing_model.mtp_logits(text, **pictures))[0, length - 2]
        assert tokens and drafts[tenant.slot, 0] == ahead.argmax()
    assert len(runner.scheduler.writers) == 4


@pytest.mark.parametrize("drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_request_has_the_same_bits_alone_preempted_and_in_a_crowd(seeing_model, mixes, drafts):
    prompts, seeds, limits = list(map(inputs_of, mixes)), list(range(8)), [30 + limit // 2 for limit in LIMITS]
    # Room for about two requests: the younger ones give their pages back again and again.
    narrow = make_engine(seeing_model, drafts, cache_tokens=128, poison=True)
    alone = [
        narrow.generate([prompt], sampling=sampling, max_new_tokens=limit, seed=[seed])[0]
        for prompt, sampling, limit, seed in zip(prompts, MIXED, limits, seeds, strict=True)
    ]
    assert narrow.metrics.preemptions == 0
    assert narrow.generate(prompts, sampling=MIXED, max_new_tokens=limits, seed=seeds) == alone
    assert narrow.metrics.preemptions > 0
    # Six of the prompts have images, and whoever reads them again needs no tower.
    assert narrow.metrics.tower_runs == 2 * 6
    assert_is_idle(narrow)
    crowd = make_engine(seeing_model, drafts, cache_tokens=128, poison=True)
    backwards = crowd.generate(prompts[::-1], sampling=MIXED[::-1], max_new_tokens=limits[::-1], seed=seeds[::-1])
    assert backwards[::-1] == alone
    assert_is_idle(crowd)


@pytest.mark.parametrize("drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_samples_of_one_prompt_share_what_is_read_and_the_tower(seeing_model, mixes, drafts):
    alone_in, engine = (make_engine(seeing_model, drafts, poison=True) for _ in range(2))
    prompt = inputs_of(mixes[2])
    alone = [
        alone_in.generate([prompt], sampling=sampling, max_new_tokens=12, seed=[seed])[0]
        for seed, sampling in enumerate(MIXED)
    ]
    assert engine.generate([prompt] * 8, sampling=MIXED, max_new_tokens=12, seed=list(range(8))) == alone
    assert engine.metrics.forks == 7 and engine.metrics.tower_runs == 1
    assert_is_idle(engine)


def test_two_images_of_one_size_are_not_taken_for_one_another(seeing_model):
    """They share what stands before them; and two texts after one image share that image, which ends inside a chunk."""
    config = seeing_model.config
    pictures = [make_mix(config, [20, (1, 8, 10), 3], seed) for seed in (0, 1)]
    first, second = (make_mix(config, [20, (1, 8, 10), 3], 0)._replace(pixels=mix.pixels) for mix in pictures)
    other_text = first._replace(input_ids=np.concatenate([first.input_ids[:, :41], [[7, 8, 9]]], axis=1))
    several = [inputs_of(mix) for mix in (first, second, other_text, second, first)]
    alone_in, engine = (make_engine(seeing_model, 2, poison=True) for _ in range(2))
    alone = [alone_in.generate([prompt], sampling=GREEDY, max_new_tokens=8, seed=[0])[0] for prompt in several]
    assert len({tuple(each.token_ids) for each in alone[:3]}) == 3
    assert engine.generate(several, sampling=GREEDY, max_new_tokens=8, seed=[0] * 5) == alone
    # The second image begins with the first's text; its third request goes on inside the first image.
    assert engine.metrics.forks == 4 and engine.metrics.tower_runs == 2
    assert_is_idle(engine)


def test_features_are_kept_only_for_those_who_are_here(seeing_model, mixes):
    engine = make_engine(seeing_model, 0, slots=1)
    gallery = engine._runner.scheduler.gallery
    numbers = [engine.submit(inputs_of(mixes[i]), max_new_tokens=2) for i in (0, 1, 0, 5)]
    kept = set()
    while engine.has_work:
        engine.step()
        kept.add(len(gallery))
        engine.abort(numbers[3])
    # The first image's wait for the third request while the second one has the slot.
    assert kept == {0, 1, 2}
    assert engine.metrics.tower_runs == 2
    assert_is_idle(engine)


def test_scores_are_the_log_probabilities_of_the_model(seeing_model, mixes):
    engine = make_engine(seeing_model, 0, poison=True)
    continuations = [[3, 4, 5, 6], [9], list(range(30, 50)), [7]]
    chosen = [mixes[2], mixes[1], mixes[0], mixes[3]]
    several = engine.score(list(map(inputs_of, chosen)), continuations)
    for mix, continuation, scores in zip(chosen, continuations, several, strict=True):
        logits = logits_after(seeing_model, mix, continuation)
        want = logits[np.arange(len(continuation)), continuation] - np.log(np.exp(logits).sum(axis=-1))
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)
    assert_is_idle(engine)


def test_bytes_and_normalised_values_say_the_same(seeing_model):
    mix = make_mix(seeing_model.config, [5, (1, 4, 6), 3])
    values = np.random.default_rng(0).integers(0, 256, mix.pixels.shape, np.uint8)
    engine = make_engine(seeing_model, 0)
    prompts = [inputs_of(mix) | {"pixels": pixels} for pixels in (values, values.astype(np.float32) / 127.5 - 1)]
    a, b = engine.generate(prompts, sampling=GREEDY, max_new_tokens=6)
    assert a.token_ids == b.token_ids


def test_given_positions_are_followed(seeing_model, mixes):
    """Those of the processor are those that the engine counts; others change the text, and no fork confuses them."""
    mix = mixes[2]
    media = read_prompt("prompt", inputs_of(mix), seeing_model.config, most_patches=256).media
    given = inputs_of(mix) | {"position_ids": media.positions[:, None]}
    later = inputs_of(mix) | {"position_ids": media.positions[:, None] * 3}
    engine = make_engine(seeing_model, 2)
    a, b, c = engine.generate([inputs_of(mix), given, later], sampling=GREEDY, max_new_tokens=6, seed=[0] * 3)
    logits = seeing_model.logits(mix.input_ids, position_ids=later["position_ids"], pixels=mix.pixels, grids=mix.grids)
    assert a == b and a != c and c.token_ids[0] == np.asarray(logits)[0, -1].argmax()


def test_text_runs_the_programs_of_a_model_without_a_tower(model, seeing_model):
    """Lowered, as arguments that a program does not use are left out then."""

    def lowered(model):
        engine, texts = make_engine(model, 2), {}

        def record(name, function):
            def call(*args, **static):
                arrays, structure = jax.tree.flatten(args[1:5])

                def flat(*arrays):
                    return jax.tree.leaves(
                        function.__wrapped__(args[0], *jax.tree.unflatten(structure, arrays), *args[5:], **static)
                    )

                texts.setdefault(name, jax.jit(flat).lower(*arrays).as_text())
                return function(*args, **static)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qwen35_jax.inference.runner.prefill", record("prefill", prefill))
            patch.setattr("qwen35_jax.inference.runner.decode", record("decode", decode))
            engine.generate([list(range(30, 70))], max_new_tokens=3)
        return texts

    assert lowered(seeing_model) == lowered(model)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.slow
def test_a_split_model_writes_the_same(make_model, seeing_model, mixes):
    """Two data shards read images of different sizes side by side; two devices share out heads and vocabulary."""
    split = make_engine(make_model(make_mesh(data=2, tensor=2), vision=True, deep=(0,)), 2)
    whole = make_engine(seeing_model, 2)
    several = [inputs_of(mix) for mix in (*mixes, mixes[2], mixes[2])]
    how = {"sampling": SamplingParams(ignore_end=True), "max_new_tokens": [*LIMITS, 12, 12]}
    want, got = (engine.generate(several, **how) for engine in (whole, split))
    assert [each.token_ids for each in got] == [each.token_ids for each in want]
    assert split.sizes.shards == 2 and split.metrics.patches >= whole.metrics.patches
    assert_is_idle(split)


@pytest.mark.parametrize("prompt", ["What?", [{"role": "user", "content": "What?"}], [[1, 2, 3]], np.ones((1, 3))])
def test_what_is_no_prompt_is_refused(model, prompt):
    read = inspect.unwrap(read_prompt)  # without the type checks of --jaxtyping-packages, which come first
    with pytest.raises(ValueError, match=r"prompt 0 is no list of token ids: it begins with .*encode_chat"):
        read("prompt 0", prompt, model.config, most_patches=0)


def test_a_model_of_text_refuses_images(model, mixes):
    with pytest.raises(ValueError, match="prompt 0 has pixels, but the engine's model reads text alone"):
        make_engine(model).submit(inputs_of(mixes[0]))
    with pytest.raises(ValueError, match="most_patches=256, but the model has no vision tower"):
        make_engine(model, most_patches=256)
    graph, weights = nnx.split(model)
    assert make_engine(nnx.merge(graph, weights)).sizes.most_vectors == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_ids": [1, 2]}, r"input_ids of shape \(2,\) and type int64; expected integers of shape \(1, tokens\)"),
        ({"image": 1}, "holds 'image'; give what the processor returns"),
        ({"grids": None}, "only one of pixels and grids"),
        ({"pixels": np.zeros((24, 3))}, r"prompt 0: pixels has shape \(24, 3\); expected \(patches, 1536\)"),
        ({"pixels": np.zeros((24, 1536), np.int64)}, "prompt 0: pixels has type int64"),
        ({"grids": [1, 4, 6]}, r"prompt 0: grids has shape \(3,\)"),
        ({"grids": [[1, 4, 4]]}, "24 patches, but the grids make 16"),
        ({"grids": np.zeros((0, 3), int)}, "24 patches, but the grids make 0"),
        ({"grids": [[1, 3, 8]]}, "rows and columns must be multiples of 2"),
        (
            {"pixels": np.zeros((16, 1536)), "grids": [[1, 4, 4]]},
            "prompt 0: the tokens hold 6 pads .* the grids need 4",
        ),
        ({"position_ids": np.zeros((3, 15), int)}, r"position_ids of shape \(3, 15\) and type int64; .* \(3, 1, 15\)"),
        ({"pixels": None, "grids": None, "position_ids": np.ones((3, 1, 15), int)}, "do not count from 0"),
        ({"pixels": np.zeros((264, 1536)), "grids": [[1, 66, 4]]}, "264 patches, but the engine takes 256 a request"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(seeing_model, mixes, change, message):
    engine = make_engine(seeing_model, 0, most_patches=200)
    with pytest.raises(ValueError, match=message) as caught:
        engine.submit(inputs_of(mixes[0]) | change)
    assert "\n" not in str(caught.value)
    assert not engine.has_work


def test_an_image_at_the_end_and_pads_in_a_continuation_are_refused(seeing_model, mixes):
    engine, mix = make_engine(seeing_model, 0), mixes[0]
    cut = inputs_of(mix) | {"input_ids": mix.input_ids[:, :-3]}
    with pytest.raises(ValueError, match="prompt 0 ends inside an image or a video"):
        engine.submit(cut)
    with pytest.raises(ValueError, match=r"prompt 0 has the place of an image or a video \(token 488, then 491\)"):
        engine.submit([5, 488, 491, 491, 489])
    assert engine.generate([[5, 491, 488, 6]], max_new_tokens=1)
    with pytest.raises(ValueError, match="continuation 0 has pads"):
        engine.score([inputs_of(mix)], [[3, seeing_model.config.image_token_id]])
