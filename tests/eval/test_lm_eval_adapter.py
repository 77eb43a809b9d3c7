"""The adapter for lm_eval: settings of requests, seeds, wrong input, and the command."""

import json

import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval.api.instance import Instance

from eval.lm_eval_adapter import NAME, LMEvalConfig, Qwen35LM, main, settings_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import Tokenizer
from tests.eval.lm_eval_stock import TableEngine, likelihood_tasks, requests_of


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer.from_pretrained(tiny_checkpoint)


class SettingsEngine(TableEngine):
    """Keeps what it was asked for."""

    def generate(self, prompts, **settings):
        self.calls.append({"prompts": prompts, **settings})
        return super().generate(prompts, **settings)


def test_settings_of_a_request_reach_the_engine(tokenizer):
    engine = SettingsEngine(tokenizer)
    wanted = [
        {"until": ["Q:", "", "</s>"], "do_sample": False, "temperature": 0.7},
        {"until": "\n\n", "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1,
         "presence_penalty": 1.5, "max_gen_toks": 40},
        {"do_sample": True, "max_new_tokens": 5, "num_beams": 1},
        {"temperature": 0.5},
        {"temperature": 0.0, "max_gen_toks": 7, "max_tokens": 8},
    ]  # fmt: skip
    lm = Qwen35LM(LMEvalConfig(max_gen_toks=99, thinking_budget=3), engine)
    lm.generate_until(requests_of("generate_until", [("context", each) for each in wanted]))
    [call] = engine.calls
    assert call["sampling"] == [
        SamplingParams(stop=("Q:", "</s>"), thinking_budget=3),
        SamplingParams(0.6, 20, 0.9, 1.5, 0.1, stop=("\n\n",), thinking_budget=3),
        SamplingParams(1.0, thinking_budget=3),
        SamplingParams(0.5, thinking_budget=3),
        SamplingParams(thinking_budget=3),
    ]
    assert call["max_new_tokens"] == [99, 40, 5, 99, 7]


def test_seeds_follow_from_the_request_alone(tokenizer):
    engine, settings = SettingsEngine(tokenizer), {"do_sample": True}
    requests = requests_of("generate_until", [(f"context {n}", settings) for n in range(3)])
    lm = Qwen35LM(LMEvalConfig(), engine)
    lm.generate_until([each for each in requests for _ in range(2)])
    lm.generate_until(requests[::-1])
    lm.generate_until(
        [Instance("generate_until", {}, ("context 0", {"do_sample": True, "top_k": 5}), 0, ("task", 0, 1))]
    )
    Qwen35LM(LMEvalConfig(seed=1), engine).generate_until(requests)
    twice, backwards, [other], reseeded = (call["seed"] for call in engine.calls)
    assert len(set(twice)) == 6, "repeats draw from streams of their own"
    assert backwards == twice[::2][::-1]
    assert other not in twice and not set(reseeded) & set(twice)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temprature": 0.5},
            "gen_kwargs has temprature=0.5, which the engine does not know; .* Did you mean temperature",
        ),
        ({"num_beams": 4}, "num_beams=4, but the engine has no beam search"),
        ({"temperature": "hot"}, "temperature='hot'; give a number"),
        ({"temperature": 1, "top_p": 2}, "top_p=2; give a probability"),
    ],
)
def test_settings_that_the_engine_lacks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of(settings, LMEvalConfig())


def test_think_blocks_and_given_beginnings_do_not_go_together(tokenizer):
    lm = Qwen35LM(LMEvalConfig(enable_thinking=True), TableEngine(tokenizer))
    begun = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "The answer is"}]
    with pytest.raises(ValueError, match=r"begins the answer with 'The answer is'.*enable_thinking=False"):
        lm.apply_chat_template(begun, add_generation_prompt=False)
    with pytest.raises(ValueError, match="open a think block"):
        lm.loglikelihood(requests_of("loglikelihood", [(lm.apply_chat_template(begun[:1]), " A")]))
    with pytest.raises(ValueError, match="one template"):
        lm.chat_template("rag")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("slotz=3", "Did you mean --slots?"),
        ("pretrained=nowhere/at/all", "nowhere/at/all"),
        ("dtype=float32", "no model is named; give --model_args pretrained=DIR"),
        ("pretrained=x,dtype=float8", "float8"),
        ("pretrained=x,slots=many", "many"),
        ("pretrained=x,max_gen_toks=0", "max_gen_toks=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        Qwen35LM.create_from_arg_string(arguments, {"batch_size": 1, "device": "cuda:0"})
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_wrong_command_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lm_eval"])
    with pytest.raises(SystemExit) as stop:
        main(["--model_args", "pretrained=x,slotz=3", "--tasks", "gsm8k"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "Did you mean --slots?" in error


@pytest.mark.slow
def test_the_command_is_lm_evals_with_our_model(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    """A task folder of the user's own, a limit, and a model that is loaded from its arguments."""
    [config, _] = likelihood_tasks(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(json.dumps(config))
    monkeypatch.setattr("sys.argv", ["lm_eval"])
    arguments = ["--model_args", f"pretrained={tiny_checkpoint},dtype=float32,slots=8", "--tasks", config["task"]]
    main([*arguments, "--include_path", str(tmp_path / "tasks"), "--limit", "2"])
    printed = capsys.readouterr().out
    assert NAME in printed and "perplexity" in printed
