"""GSM8K's three protocols: prompts, and verdicts that equal lm_eval's."""

import json
import random
from pathlib import Path

import pytest

from eval.score import main as score
from eval.tasks import get_task
from eval.tasks.gsm8k import CARD_REQUEST
from tests.conftest import shared_dir
from tests.eval.conftest import write_rows

QUESTION = "Sixteen eggs, three eaten, four baked, the rest sold at 2 dollars each. How much?"
SOLUTION = "She has 1,000 + 200 = <<1000+200=1200>>1,200.\n#### 1,200"
TRAIN = [
    {"question": f"What is {n}+{n}? ", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"} for n in range(9)
]


def load(folder, rows, protocol, train=()):
    write_rows(folder / "gsm8k" / "test.jsonl", rows)
    if train:
        write_rows(folder / "gsm8k" / "train.jsonl", train)
    return get_task("gsm8k").load(protocol, str(folder)).documents


@pytest.mark.parametrize(("protocol", "prompt"), [("official", "How many?"), ("card", f"How many?\n\n{CARD_REQUEST}")])
def test_prompts_without_solved_problems(tmp_path, protocol, prompt):
    (document,) = load(tmp_path, [{"question": "How many?", "answer": SOLUTION}], protocol)
    assert document.messages == [{"role": "user", "content": prompt}]
    assert (document.text, document.target) == (None, "1200")


def lm_eval_task(folder, cache):
    """Returns lm_eval's own task over local files."""
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    import lm_eval
    import yaml
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    config |= {"dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(cache)}
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return task


def check_prompts(folder, cache, count):
    task = lm_eval_task(folder / "gsm8k", cache)
    documents = get_task("gsm8k").load("lm-eval", str(folder)).documents
    assert len(documents) == count
    for document, row in zip(documents, task.test_docs(), strict=True):
        wanted = task.fewshot_context(row, num_fewshot=5)
        assert document.text == wanted
        assert document.messages == [{"role": "user", "content": wanted}]


def test_lm_eval_prompts_of_own_rows(tmp_path):
    rows = [{"question": f" {QUESTION} {n}\n", "answer": SOLUTION} for n in range(40)]
    load(tmp_path, rows, "lm-eval", TRAIN)
    check_prompts(tmp_path, tmp_path / "cache", 40)


@pytest.mark.skipif(shared_dir() is None, reason="GSM8K is not beside the checkout")
def test_lm_eval_prompts_of_the_whole_test_split(tmp_path):
    check_prompts(shared_dir() / "data", tmp_path / "cache", 1319)


def test_a_document_has_the_same_solved_problems_whichever_are_asked(tmp_path):
    rows = [{"question": f"{QUESTION} {n}", "answer": SOLUTION} for n in range(9)]
    everything = load(tmp_path, rows, "lm-eval", TRAIN)
    few = get_task("gsm8k").load("lm-eval", str(tmp_path), limit=5).documents
    assert [document.text for document in few] == [document.text for document in everything[:5]]


def test_too_few_solved_problems_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"test\.jsonl:1: protocol lm-eval shows 5 solved problems.* has 4;"):
        load(tmp_path, [{"question": "q", "answer": SOLUTION}], "lm-eval", TRAIN[:4])


def test_lm_eval_needs_the_training_split(tmp_path):
    with pytest.raises(ValueError, match=r"put the data of gsm8k at .*train\.jsonl"):
        load(tmp_path, [{"question": "q", "answer": SOLUTION}], "lm-eval")


PIECES = [
    "#### 1,200", "#### 1200", "#### 1200.", "#### $1200", "#### -1200", "#### Step 2: add", "####1200", "#### 7",
    "The answer is 1200.",
    "$1,200.00", "1200.", "7", "-1200", "", "...", "no number", "$1200", "1,2,0,0", "Question: next? 5", "</s> 9",
    "\n", "#### ,", "$",
]  # fmt: skip


def test_verdicts_equal_those_of_lm_eval_on_made_up_responses(tmp_path):
    from lm_eval.api.instance import Instance

    (document,) = load(tmp_path, [{"question": "q", "answer": SOLUTION}], "lm-eval", TRAIN)
    task = lm_eval_task(tmp_path / "gsm8k", tmp_path / "cache")
    (row,) = task.test_docs()
    rng = random.Random(0)
    responses = [*PIECES, *(" ".join(rng.choices(PIECES, k=rng.randint(2, 6))) for _ in range(500))]
    right = {"accuracy": 0, "strict": 0}
    for response in responses:
        until = response
        for stop in task.config.generation_kwargs["until"]:  # as its model classes cut a generated text
            until = until.split(stop)[0]
        instance = Instance("generate_until", row, ("", {}), 0, metadata=("gsm8k", 0, 1))
        instance.resps = [until]
        for ensemble in task._filters:
            ensemble.apply([instance])
        wanted = {
            ours: task.process_results(row, [instance.filtered_resps[theirs]])["exact_match"]
            for ours, theirs in (("accuracy", "flexible-extract"), ("strict", "strict-match"))
        }
        verdict = document.score(response)
        assert {name: float(value) for name, (value,) in verdict.metrics.items()} == wanted, response
        right = {name: right[name] + wanted[name] for name in right}
    assert 50 < right["strict"] < right["accuracy"] < 450


@pytest.mark.parametrize(
    ("response", "accuracy", "strict"),
    [
        ("... #### 1200", True, True),
        ("... #### 1,200", True, True),
        (r"\boxed{1,200.0}", True, False),
        ("so #### 1200.", True, False),
        ("It is 1,200 in all.", True, False),
        ("#### 12", False, False),
        (r"$\boxed{1{,}200}$", True, False),
    ],
)
def test_official_verdicts(tmp_path, response, accuracy, strict):
    (document,) = load(tmp_path, [{"question": "q", "answer": SOLUTION}], "official")
    assert document.score(response).metrics == {"accuracy": [accuracy], "strict": [strict]}


def test_a_repeated_question_is_no_answer(tmp_path):
    (document,) = load(tmp_path, [{"question": QUESTION, "answer": "#### 2"}], "card")
    assert not document.score(f"{QUESTION}\n\n{CARD_REQUEST}").parsed
    assert document.score(f"Two is the answer to: {QUESTION}\n#### 2").correct
    assert document.score(f"2 is what I say to: {QUESTION}").correct


def test_the_solution_mark_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"test\.jsonl:1: .* does not end in '#### NUMBER'"):
        load(tmp_path, [{"question": "q", "answer": "1200"}], "official")


@pytest.mark.skipif(shared_dir() is None, reason="the cases are not beside the checkout")
def test_stored_cases_come_out_right_through_the_command(tmp_path, capsys):
    cases = shared_dir() / "cases" / "answers"
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_bytes((cases / "gsm8k_test.jsonl").read_bytes())
    out = tmp_path / "out"
    score(["--task", "gsm8k", "--responses", str(cases / "gsm8k_responses.jsonl"), "--data-dir", str(tmp_path / "data"),
           "--out", str(out)])  # fmt: skip
    metrics = json.loads((out / "results.json").read_text())["tasks"]["gsm8k"]["metrics"]
    assert (metrics["accuracy"]["value"], metrics["accuracy"]["n"]) == (1.0, 2)
    assert "accuracy" in capsys.readouterr().out
