"""Stock tasks of lm_eval score through the adapter as our own tasks do.

They are those that lm_eval ships, with prompts, filters and metrics; only their rows come from a file here.
"""

import dataclasses
import json
import shutil

import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval import simple_evaluate

from eval.config import EvalConfig
from eval.lm_eval_adapter import LMEvalConfig, Qwen35LM
from eval.run import run
from qwen35_jax.hf.source import ModelSource, load_model
from qwen35_jax.inference.engine import Engine
from qwen35_jax.processing import Tokenizer
from tests.conftest import shared_dir
from tests.eval.conftest import write_rows
from tests.eval.lm_eval_stock import TableEngine, manager, stock_task

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

NUM_ROWS = 40

# The files of each task, the one that is scored first.
SPLITS = {
    "gsm8k": ("test.jsonl", "train.jsonl"),
    "ifeval": ("train.jsonl",),
    "mmlu_pro": ("test.jsonl", "validation.jsonl"),
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
    # Five solved problems of a token a byte must fit into 4,096 positions.
    solved = data / "gsm8k" / "train.jsonl"
    solved.write_text("".join(sorted(solved.read_text().splitlines(keepends=True), key=len)[:9]))
    compare(data, engine, "non_thinking", length=40)
