"""Log-likelihoods through the adapter are those of lm_eval's own model of transformers."""

import dataclasses

import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval import simple_evaluate

from eval.lm_eval_adapter import LMEvalConfig, Qwen35LM
from qwen35_jax.hf.source import ModelSource, load_model
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import Tokenizer
from tests.eval.lm_eval_stock import likelihood_tasks, manager, requests_of


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint, tokenizer):
    return Engine(load_model(ModelSource(tiny_checkpoint, dtype="float32")), tokenizer, slots=8)


def likelihoods_of(results):
    """Returns the pairs that the model answered, by task and document."""
    return {
        (name, sample["doc_id"], place): resp[0]
        for name, samples in results["samples"].items()
        for sample in samples
        for place, resp in enumerate(sample["resps"])
    }


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    """lm_eval's own model of transformers, with the same weights in float32."""
    pytest.importorskip("torch", reason="needs the group reference")
    pytest.importorskip("transformers", reason="needs the group reference")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=tiny_checkpoint, dtype="float32", device="cpu", batch_size=4, max_length=512)


@pytest.mark.parametrize("chat", [False, True])
def test_log_likelihoods_are_those_of_transformers(tmp_path, engine, reference, chat):
    lm = Qwen35LM(LMEvalConfig(enable_thinking=False), engine)
    ours, theirs = (
        simple_evaluate(
            model, tasks=likelihood_tasks(tmp_path), task_manager=manager(), bootstrap_iters=0, apply_chat_template=chat
        )
        for model in (lm, reference)
    )
    mine, want = likelihoods_of(ours), likelihoods_of(theirs)
    assert mine.keys() == want.keys() and len(mine) == 3 + 6
    for key in want:
        # float32 on both sides; the sums are of up to 20 tokens.
        assert mine[key][0] == pytest.approx(want[key][0], abs=1e-4), key
        assert mine[key][1] == want[key][1], key
    for name, metrics in theirs["results"].items():
        for metric in ("acc,none", "acc_norm,none"):
            assert ours["results"][name].get(metric) == metrics.get(metric)


def test_greedy_continuations_are_told_as_transformers_tells_them(engine, reference):
    """A continuation that the model itself writes is greedy, and no longer when its last word is another."""
    contexts = ["one two three", "the cat sat on"]
    texts = engine.generate(
        [engine.tokenizer.encode(text) for text in contexts],
        sampling=SamplingParams(ignore_end=True), max_new_tokens=4,
    )  # fmt: skip
    pairs = []
    for context, completion in zip(contexts, texts, strict=True):
        written = engine.tokenizer.decode(completion.token_ids, skip_special_tokens=False)
        if engine.tokenizer.encode(context + written) == [*engine.tokenizer.encode(context), *completion.token_ids]:
            pairs += [(context, written), (context, f"{written}~")]
    assert pairs, "no continuation survives being written as text"
    pairs += [("", "no context"), ("spaces   ", "after"), ("a line\n", "and another")]
    requests = requests_of("loglikelihood", pairs)
    config = LMEvalConfig(prefix_token_id=reference.prefix_token_id)
    mine, want = Qwen35LM(config, engine).loglikelihood(requests), reference.loglikelihood(requests)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in want]
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in want], abs=1e-4)
    assert {greedy for _, greedy in mine} == {True, False}


def test_rolling_log_likelihoods_are_those_of_transformers(engine, reference, monkeypatch):
    """One text shorter than a window of 64 tokens, one that is just as long as one, one of several windows, none."""
    texts = ["short", "x" * 64, "the cat sat on the mat and looked at the rain. " * 5, ""]
    requests = requests_of("loglikelihood_rolling", [(text,) for text in texts])
    monkeypatch.setattr(reference, "_max_length", 64)
    config = LMEvalConfig(prefix_token_id=reference.prefix_token_id, max_length=64)
    mine = Qwen35LM(config, engine).loglikelihood_rolling(requests)
    assert mine == pytest.approx(reference.loglikelihood_rolling(requests), rel=1e-6, abs=1e-4)
    whole = Qwen35LM(dataclasses.replace(config, max_length=None), engine).loglikelihood_rolling(requests)
    assert whole[:2] == mine[:2] and whole[2] != mine[2] and whole[3] == 0


def test_the_chat_template_is_applied_as_transformers_applies_it(engine, reference):
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
    begun = [*talk, {"role": "assistant", "content": "The answer is"}]
    lm = Qwen35LM(LMEvalConfig(enable_thinking=False), engine)
    assert lm.apply_chat_template(talk) == reference.apply_chat_template(talk)
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith("</think>\n\nThe answer is")
    thinking = Qwen35LM(LMEvalConfig(enable_thinking=True), engine)
    assert thinking.apply_chat_template(talk).endswith("<think>\n")
    assert thinking.tokenizer_name != lm.tokenizer_name
    assert lm.chat_template(True) == reference.chat_template(True) and lm.chat_template(False) is None
