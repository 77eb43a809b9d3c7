"""Batches of rollouts: whose tokens they hold, how they are laid out, and that they continue exactly."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.tiny_sft import config as tiny
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.sharding import MeshConfig
from tests.train.rollouts.conftest import SEED, SETTINGS
from train.batch import TOKEN_FIELDS
from train.config import ModelSource
from train.data.pipeline import make_batches
from train.objectives.rollouts import ROLLOUT_FIELDS
from train.rollouts import batches as of_batches
from train.rollouts import sampler
from train.run import build


def documents(batch):
    """Returns ids, trained marks and log-probabilities of every document of rollouts, in order."""
    found = []
    for row in range(len(batch["input_ids"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            here = batch["segment_ids"][row] == segment
            if not batch["labelled"][row][here].any():
                found.append(
                    tuple(batch[name][row][here].tolist() for name in ("input_ids", "trained", "sampled_log_probs"))
                )
    return found


def assert_equal(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.keys() == w.keys()
        for name in w:
            np.testing.assert_array_equal(g[name], w[name], err_msg=name)


def timeless(figures):
    return {name: value for name, value in figures.items() if not name.endswith("seconds")}


def prompts_of(batches, tokenizer, count):
    """Returns position and ids of the first prompts, read without the code under test."""
    found = []
    for position in range(count):
        path, line = batches.corpus.where(position).split(" line ")
        messages = json.loads(Path(path).read_text().splitlines()[int(line) - 1])["messages"]
        found.append((position, tokenizer.encode_chat(messages[:-1])))
    return found


def test_tokens_are_those_of_the_engine_with_the_same_seeds_and_weights(make, take, setup, moved, tokenizer):
    batches = make()
    first, second = take(batches, [setup.state, moved])
    # Four sequences of two documents each, of two answers.
    prompts = prompts_of(batches, tokenizer, 8)
    for state, batch, chosen in ((setup.state, first, prompts[:4]), (moved, second, prompts[4:])):
        wanted = [(position, ids, number) for position, ids in chosen for number in range(2)]
        done = Engine(setup.model(state), tokenizer, slots=4).generate(
            [ids for _, ids, _ in wanted],
            sampling=SamplingParams(temperature=1.0, logprobs=0),
            max_new_tokens=8,
            seed=[seed_of(SEED, f"rollout/{position}/{number}") for position, _, number in wanted],
        )
        expected = [
            (
                [*ids, *completion.token_ids],
                [False] * len(ids) + [True] * len(completion.token_ids),
                [0.0] * len(ids) + [each.model for each in completion.logprobs],
            )
            for (_, ids, _), completion in zip(wanted, done, strict=True)
        ]
        assert sorted(documents(batch)) == sorted(expected)
    assert len({tuple(ids) for ids, _, _ in documents(first)}) == 8


def test_batches_have_the_declared_fields_and_no_invented_end(make, take, setup, tokenizer):
    batches = make()
    [batch] = take(batches, [setup.state])
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
        name: (np.dtype(field.dtype), (4, 96)) for name, field in {**TOKEN_FIELDS, **ROLLOUT_FIELDS}.items()
    }
    figures, found = batches.figures(), documents(batch)
    answers = [np.array(ids)[trained].tolist() for ids, trained, _ in found]
    turn, text = (tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    ends = [answer[-1] for answer in answers]
    cut_off = [answer for answer in answers if answer[-1] not in (turn, text)]
    assert cut_off and all(len(answer) == 8 for answer in cut_off)
    assert figures["rollout_truncated"] == len(cut_off) / 8
    assert figures["rollout_end_of_turn"] == ends.count(turn) / 8
    assert figures["rollout_end_of_text"] == ends.count(text) / 8
    assert figures["rollout_length_mean"] == np.mean([len(answer) for answer in answers])
    assert figures["rollout_length_max"] == 8 and figures["rollout_staleness"] == 0
    assert 0 < figures["rollout_distinct"] <= 1 and figures["rollout_seconds"] > 0
    padding = batch["segment_ids"] == 0
    assert (batch["input_ids"][padding] == tokenizer.pad_token_id).all() and not batch["trained"][padding].any()


def test_log_probabilities_are_those_of_the_model(make, take, setup, mesh):
    [batch] = take(make(temperature=0.7, top_k=20), [setup.state])
    with jax.set_mesh(mesh):
        logits = setup.model(setup.state).logits(batch["input_ids"], segment_ids=batch["segment_ids"])
    before = np.asarray(jax.nn.log_softmax(logits))[:, :-1]
    model = np.take_along_axis(before, batch["input_ids"][:, 1:, None], axis=2)[..., 0]
    sampled, trained = batch["sampled_log_probs"][:, 1:], batch["trained"][:, 1:]
    # float32 in another order: the engine reads prompts in chunks and writes one token at a time.
    np.testing.assert_allclose(sampled[trained], model[trained], atol=2e-4)
    assert (sampled[~trained] == 0).all() and trained.sum() > 20


def test_weights_are_used_for_exactly_as_many_batches_as_refresh_says(make, take, setup, moved):
    batches, staleness = make(refresh=2), []
    stale = []
    for state in (setup.state, moved, moved):
        stale += take(batches, [state])
        staleness.append(batches.figures()["rollout_staleness"])
    assert staleness == [0, 1, 0]
    # The same prompts by the weights that each batch was sampled with.
    same = take(make(), [setup.state, setup.state, moved])
    assert [documents(batch) for batch in stale] == [documents(batch) for batch in same]
    assert documents(take(make(), [setup.state, moved])[1]) != documents(stale[1])


def test_new_weights_compile_nothing(make, take, setup, moved, caplog):
    batches = make()
    take(batches, [setup.state])
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        take(batches, [moved])
    assert not [record.message for record in caplog.records if "ompil" in record.message]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_any_interruption_continues_exactly_without_sampling_again(make, take, setup, moved, monkeypatch, fraction):
    states = [setup.state] * 3 + [moved] * 3
    batches, states_after, want, figures = make(refresh=3, fraction=fraction), [], [], []
    for state in states:
        want += take(batches, [state])
        states_after.append(json.dumps(batches.merge(batches.get_state())))
        figures.append(timeless(batches.figures()))
    for done in (1, 2, 3, 5):
        resumed = make(refresh=3, fraction=fraction)
        resumed.set_state(json.loads(states_after[done - 1]))
        assert json.dumps(resumed.get_state()) == states_after[done - 1]
        with monkeypatch.context() as patched:
            if done in (2, 5):
                patched.setattr(sampler.Sampler, "sample", None)
            got = take(resumed, states[done : done + 1])
        assert timeless(resumed.figures()) == figures[done]
        got += take(resumed, states[done + 1 :])
        assert_equal(got, want[done:])
        assert resumed.report() == batches.report() and resumed.epoch == batches.epoch


def test_processes_lay_out_the_sequences_of_one_batch(make, take, setup, data, monkeypatch):
    data = dataclasses.replace(data, shards=2, sequences_per_batch=8)
    whole, parts = make(data=data, fraction=0.5), []
    for start in (0, 4):
        parts.append(make(data=data, fraction=0.5, sequences=range(start, start + 4)))
    want = take(whole, [setup.state] * 2)
    got = [take(part, [setup.state] * 2) for part in parts]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*got, strict=True)]
    assert_equal(joined, want)
    assert parts[0].documents() + parts[1].documents() == whole.documents()
    assert timeless(parts[0].figures()) == timeless(parts[1].figures()) == timeless(whole.figures())
    told = [json.loads(json.dumps(part.get_state())) for part in parts]
    monkeypatch.setattr(of_batches, "gather", lambda own: [own, own | {"data": told[1]["data"]}])
    assert parts[0].merge(told[0]) == whole.get_state()
    monkeypatch.setattr(of_batches, "gather", lambda own: [own, own | {"digest": "of another batch"}])
    with pytest.raises(ValueError, match="the processes hold other rollouts or are not at the same batch"):
        parts[0].merge(told[0])


def test_a_fraction_mixes_rollouts_with_the_documents_of_the_data(make, take, setup, data, tokenizer):
    batches = make(fraction=0.5)
    [batch] = take(batches, [setup.state])
    # Rollouts are spread evenly over the four sequences.
    own, others = [1, 3], [0, 2]
    alone = make_batches(dataclasses.replace(data, sequences_per_batch=2), tokenizer)
    assert_equal([{name: batch[name][others] for name in TOKEN_FIELDS}], [next(alone)])
    assert (batch["labelled"][others] == (batch["segment_ids"][others] > 0)).all() and not batch["labelled"][own].any()
    assert not batch["sampled_log_probs"][others].any() and batch["sampled_log_probs"][own].any(axis=1).all()
    names = batches.documents()
    assert [names[row] for row in others] == alone.documents()
    answers = [f"{alone.corpus.where(position)}, answer {number}" for position in (0, 1) for number in (1, 2)]
    assert sorted(names[1] + names[3]) == sorted(answers)
    assert batches.report()["data"] == alone.report() and batches.report()["rollouts"] == 4


def test_a_state_of_other_settings_is_refused(make):
    with pytest.raises(ValueError, match=r"belongs to other rollouts: rollouts was .*'temperature': 1.0.* is "):
        make(temperature=0.5).set_state(make().get_state())
    # These decide no answer that is already there.
    make(refresh=3, slots=2).set_state(make().get_state())


def test_settings_that_change_the_distribution_are_told(make, caplog):
    make()
    assert "k1" not in caplog.text
    make(top_p=0.9, temperature=0.7)
    assert "rollouts.temperature=0.7, rollouts.top_p=0.9 samples another distribution" in caplog.text
    assert SETTINGS.sampling == SamplingParams(temperature=1.0, logprobs=0)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_a_mesh_with_more_shares_than_answers_samples_as_one_device_does(make, take, setup, data, inputs):
    config = tiny().replace(
        model=ModelSource(str(inputs / "base"), dtype="float32"), data=data, mesh=MeshConfig(data=4, tensor=2)
    )
    mesh = config.layout.mesh.mesh()
    with jax.set_mesh(mesh):
        split = build(config, inputs / "base", mesh)
        batches = make(answers=1, fraction=0.25)
        batches.sample_from(split.model)
        [batch] = take(batches, [split.state])
    [want] = take(make(answers=1, fraction=0.25), [setup.state])
    assert [ids for ids, *_ in documents(batch)] == [ids for ids, *_ in documents(want)]
    # float32 sums in another order.
    np.testing.assert_allclose(batch["sampled_log_probs"], want["sampled_log_probs"], atol=1e-4)
