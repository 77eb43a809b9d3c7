"""The adapter for lm_eval: stock tasks score as our own, and log-likelihoods are those of transformers' model there.

The stock tasks are those that lm_eval ships, with prompts, filters and metrics; only their rows come from a file here.
"""

import dataclasses
import hashlib
import json

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

MANAGER = TaskManager()

# Ours with lm_eval's name for each metric.
METRICS = {
    "gsm8k": {"accuracy": "exact_match,flexible-extract", "strict": "exact_match,strict-match"},
    "ifeval": {
        "prompt_strict": "prompt_level_strict_acc,none",
        "instruction_strict": "inst_level_strict_acc,none",
        "prompt_loose": "prompt_level_loose_acc,none",
        "instruction_loose": "inst_level_loose_acc,none",
    },
}
STOCK = {"gsm8k": "gsm8k_cot_zeroshot", "ifeval": "ifeval"}

ANSWERS = [
    "So 9 + 9 = 18.\nThe answer is 18.",
    "The answer is 17. Q: What is 18?",
    "It costs $18",
    "I write no comma and no digit",
    '"Two words"',
    "# A title\n\n* one\n* two\n\nP.S. The answer is 1,800.",
    "ALL OF IT IS IN CAPITALS: 18",
    "",
]
NUM_ROWS = 40


class TableEngine(FakeEngine):
    """Answers each prompt with one of some texts, as the prompt's hash says; stop texts and limits hold."""

    def __init__(self, tokenizer, *, thinks=False):
        super().__init__(answers=None)
        self.tokenizer, self.thinks = tokenizer, thinks

    def answer_to(self, prompt):
        number = hashlib.sha256(bytes(str(prompt), "utf-8")).digest()[0]
        answer = ANSWERS[number % len(ANSWERS)]
        thought = "Q: is 5 the answer?\n</think>\n\n" if number % 3 else "Q: the answer is 18"
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


def stock_task(name, path, split="test"):
    """Returns the configuration of a task as lm_eval ships it, with rows of a file in the place of the hub's."""
    config = load_yaml(MANAGER.task_index[name].yaml_path)
    for key in ("tag", "training_split", "validation_split", "fewshot_split", "dataset_name"):
        config.pop(key, None)
    files = {"data_files": {split: str(path)}, "cache_dir": str(path.parent / "cache")}
    return {**config, "dataset_path": "json", "dataset_kwargs": files, "task": f"{name}_local", "test_split": split}


def evaluate(lm, configs, **settings):
    return simple_evaluate(
        lm, tasks=configs, task_manager=MANAGER, bootstrap_iters=0, apply_chat_template=True, **settings
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint, tokenizer):
    return Engine(load_model(ModelSource(tiny_checkpoint, dtype="float32")), tokenizer, slots=8)


@pytest.fixture
def data(tmp_path):
    """The first rows of the benchmarks, without the prompts for which lm_eval draws a letter."""
    shared = shared_dir()
    if shared is None:
        pytest.skip("the benchmarks' data are not beside the checkout")
    files = {"gsm8k": "gsm8k/test.jsonl", "ifeval": "ifeval/input_data_541.jsonl"}
    for task, name in files.items():
        rows = [json.loads(line) for line in (shared / "data" / name).read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row.get("key") not in (1122, 1129)][:NUM_ROWS]
        if task == "gsm8k":
            rows = [row | {"answer": "9 + 9 = 18\n#### 18"} if n % 2 else row for n, row in enumerate(rows)]
        write_rows(tmp_path / "data" / task / "test.jsonl", rows)
    return tmp_path / "data"


def compare(data, engine, mode):
    """Runs the stock tasks through the adapter and ours through ``eval.run``; returns the values, which are equal."""
    ours = run(
        EvalConfig(tasks=tuple(STOCK), protocol="lm-eval", mode=mode, data_dir=str(data), out=str(data / "out")), engine
    )
    lm = Qwen35LM(LMEvalConfig(enable_thinking=mode == "thinking"), engine)
    configs = [stock_task(STOCK[name], data / name / "test.jsonl") for name in STOCK]
    theirs = evaluate(lm, configs)
    values = {}
    for task, names in METRICS.items():
        own, stock = ours["tasks"][task]["metrics"], theirs["results"][f"{STOCK[task]}_local"]
        samples = [json.loads(line) for line in open(data / "out" / "samples" / f"{task}.jsonl")]
        answers = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs["samples"][f"{STOCK[task]}_local"]}
        for number, sample in enumerate(samples):
            # Our scorer cuts GSM8K's answer at the stop text, which ends theirs.
            assert answers[number] == (sample["response"].split("Q:")[0] if task == "gsm8k" else sample["response"])
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
    for task in STOCK:
        path = data / task / "test.jsonl"
        path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    compare(data, engine, "non_thinking")
