"""The adapter for lm_eval: stock tasks score as our own, and log-likelihoods are those of transformers' model there.

The stock tasks are those that lm_eval ships, with prompts, filters and metrics; only their rows come from a file here.
"""

import dataclasses
import functools
import hashlib
import json
import shutil

import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from eval.config import EvalConfig
from eval.lm_eval_adapter import NAME, LMEvalConfig, Qwen35LM, main, settings_of
from eval.run import run
from qwen35_jax.hf.source import ModelSource, load_model
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.inference.transcript import Transcript
from qwen35_jax.processing import Tokenizer
from tests.conftest import shared_dir
from tests.eval.conftest import FakeEngine, write_rows

# Ours with lm_eval's name for each metric.
METRICS = {
    "gsm8k": {"accuracy": "exact_match,flexible-extract", "strict": "exact_match,strict-match"},
    "mmlu_pro": {"accuracy": "exact_match,custom-extract"},
    "ifeval": {
        "prompt_strict": "prompt_level_strict_acc,none",
        "instruction_strict": "inst_level_strict_acc,none",
        "prompt_loose": "prompt_level_loose_acc,none",
        "instruction_loose": "inst_level_loose_acc,none",
    },
}
STOCK = {"gsm8k": "gsm8k", "ifeval": "ifeval", "mmlu_pro": "mmlu_pro_math"}

ANSWERS = [
    "So 9 + 9 = 18.\nThe answer is 18.",
    "The answer is 17. Question: is it 18?",
    "It is twice nine.\n#### 18",
    "I think that the answer is (C).",
    "Surely the answer is A",
    "The answer is (B).",
    "The answer is D. Question: why not? The answer is (C).",
    "It costs $18",
    "I write no comma and no digit",
    '"Two words"',
    "# A title\n\n* one\n* two\n\nP.S. The answer is 1,800.",
    "ALL OF IT IS IN CAPITALS: 18",
    "",
]
NUM_ROWS = 40

# The files of each task, the one that is scored first.
SPLITS = {
    "gsm8k": ("test.jsonl", "train.jsonl"),
    "ifeval": ("train.jsonl",),
    "mmlu_pro": ("test.jsonl", "validation.jsonl"),
}


class TableEngine(FakeEngine):
    """Answers each prompt with one of some texts, as the prompt's hash says; stop texts and limits hold."""

    def __init__(self, tokenizer, *, thinks=False):
        super().__init__(answers=None)
        self.tokenizer, self.thinks = tokenizer, thinks

    def answer_to(self, prompt):
        first, second, third = hashlib.sha256(bytes(str(prompt), "utf-8")).digest()[:3]
        answer = f"{ANSWERS[first % len(ANSWERS)]}\n{ANSWERS[second % len(ANSWERS)]}"
        thought = "Question: 5?\n</think>\n\n" if third % 3 else "Question: the answer is 18, or (C)"
        return f"{thought}{answer}" if self.thinks else answer

    def generate(self, prompts, *, sampling, max_new_tokens, seed=0, on_finish=None):
        completions = []
        for place, prompt in enumerate(prompts):
            transcript = Transcript(self.tokenizer, prompt, sampling[place], stream=False)
            tokens = [*self.tokenizer.encode(self.answer_to(prompt)), self.tokenizer.eos_token_ids[0]]
            reason = "length"
            for token in tokens[: max_new_tokens[place]]:
                reason = "stop" if token == tokens[-1] else reason
                if found := transcript.push(token, None):
                    reason = found
                    break
            completions.append(transcript.finish(reason, seed=seed[place], closed_by_budget=False))
            on_finish(place, completions[-1])
        return completions


@functools.cache
def manager():
    """Returns lm_eval's index of tasks, which takes seconds to build."""
    return TaskManager()


def stock_task(name, **splits):
    """Returns the configuration of a task as lm_eval ships it, with rows of files in the place of the hub's.

    Args:
      splits: the file of each; the task's other splits are left out.
    """
    config = load_yaml(manager().task_index[name].yaml_path)
    kept = {key: value for key, value in config.items() if not key.endswith("_split") or value in splits}
    for key in ("tag", "dataset_name"):
        kept.pop(key, None)
    files = {split: str(path) for split, path in splits.items()}
    first = next(iter(splits.values()))
    return kept | {
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(first.parent / "cache")},
    }


def evaluate(lm, configs, **settings):
    return simple_evaluate(
        lm, tasks=configs, task_manager=manager(), bootstrap_iters=0, apply_chat_template=True, **settings
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint, tokenizer):
    return Engine(load_model(ModelSource(tiny_checkpoint, dtype="float32")), tokenizer, slots=8)


@pytest.fixture
def data(tmp_path):
    """The first rows of benchmarks, without the prompts for which lm_eval draws a letter; MMLU-Pro's are made up."""
    shared = shared_dir()
    if shared is None:
        pytest.skip("the benchmarks' data are not beside the checkout")
    folder = tmp_path / "data"
    for task, name in {"gsm8k": "gsm8k/test.jsonl", "ifeval": "ifeval/input_data_541.jsonl"}.items():
        with (shared / "data" / name).open(encoding="utf-8") as file:
            rows = [row for row in map(json.loads, file) if row.get("key") not in (1122, 1129)][:NUM_ROWS]
        if task == "gsm8k":
            rows = [row | {"answer": "9 + 9 = 18\n#### 18"} if n % 2 else row for n, row in enumerate(rows)]
        write_rows(folder / task / SPLITS[task][0], rows)
    # All of it: the solved problems are drawn from the whole split.
    shutil.copy(shared / "data" / "gsm8k" / "train.jsonl", folder / "gsm8k")
    for split, count in {"test": NUM_ROWS, "validation": 5}.items():
        write_rows(folder / "mmlu_pro" / f"{split}.jsonl", [multiplication(n, split) for n in range(count)])
    return folder


def multiplication(number, split):
    options = [f" {number * factor}" for factor in range(1, 2 + number % 9)]
    solution = f"A: Let's think step by step. It is {number}. The answer is (A)."
    return {
        "question_id": number, "question": f"What is {number} times 1 ({split})?", "options": options,
        "answer": "ABC"[number % 3 % len(options)], "answer_index": number % 3 % len(options),
        "cot_content": solution if split == "validation" else "", "category": "math", "src": "made up",
    }  # fmt: skip


def compare(data, engine, mode, length=None):
    """Runs the stock tasks by the adapter and ours by ``eval.run``; checks that they agree, and returns the values."""
    config = EvalConfig(tasks=tuple(STOCK), protocol="lm-eval", mode=mode, data_dir=str(data), out=str(data / "out"))
    ours = run(dataclasses.replace(config, max_new_tokens=length), engine)
    lm = Qwen35LM(LMEvalConfig(enable_thinking=mode == "thinking"), engine)
    files = {task: {name.split(".")[0]: data / task / name for name in names} for task, names in SPLITS.items()}
    values = {}
    for task, names in METRICS.items():
        theirs = evaluate(
            lm,
            [stock_task(STOCK[task], **files[task])],
            gen_kwargs={"max_gen_toks": length} if length else None,
            # Our GSM8K shows its solved problems in one turn.
            fewshot_as_multiturn=task != "gsm8k",
        )
        own, stock = ours["tasks"][task]["metrics"], theirs["results"][f"{STOCK[task]}_local"]
        lines = (data / "out" / "samples" / f"{task}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        samples = [json.loads(line) for line in lines]
        answers = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs["samples"][f"{STOCK[task]}_local"]}
        for number, sample in enumerate(samples):
            assert answers[number] == sample["response"], (task, number)
        for mine, name in names.items():
            assert own[mine]["value"] == pytest.approx(stock[name], abs=1e-12), (task, mine)
            values[task, mine] = own[mine]["value"]
    return values


@pytest.mark.parametrize("mode", ["non_thinking", "thinking"])
def test_stock_tasks_score_as_our_own(data, tokenizer, verifiers, mode):
    values = compare(data, TableEngine(tokenizer, thinks=mode == "thinking"), mode)
    assert all(0 < value < 1 for value in values.values()), values
    assert values["gsm8k", "accuracy"] > values["gsm8k", "strict"]


@pytest.mark.slow
def test_a_model_answers_stock_tasks_as_it_answers_our_own(data, engine, verifiers):
    """The texts of a random model are equal, so the prompts and the settings are."""
    for task, (name, *_) in SPLITS.items():
        path = data / task / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    compare(data, engine, "non_thinking", length=40)


LAMBADA = [
    {"text": "Some sentences end with a word that one can guess from the start: they end with a word"},
    {"text": "the cat sat on the mat, and the dog lay on the floor near the door"},
    {"text": "one two three four five six seven eight"},
]
ARC = [
    {
        "question": "What is wet?",
        "choices": {"text": ["a stone", "water", "sand of a desert"], "label": ["A", "B", "C"]},
    },
    {"question": "How many legs?", "choices": {"text": ["2", "4", "no legs at all"], "label": ["1", "2", "3"]}},
]


def likelihood_tasks(folder):
    """Returns two stock tasks over rows of our own: one with a greedy check, and one with several choices."""
    rows = {"lambada_openai": LAMBADA, "arc_easy": [row | {"answerKey": row["choices"]["label"][1]} for row in ARC]}
    return [stock_task(name, test=write_rows(folder / f"{name}.jsonl", each)) for name, each in rows.items()]


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


def requests_of(kind, arguments):
    return [Instance(kind, {}, each, 0, ("task", number, 1)) for number, each in enumerate(arguments)]


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


def test_think_blocks_and_given_beginnings_do_not_go_together(engine):
    lm = Qwen35LM(LMEvalConfig(enable_thinking=True), engine)
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
