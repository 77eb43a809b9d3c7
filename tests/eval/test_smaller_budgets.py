"""The scores that one long run tells of smaller budgets are those of real runs with these budgets."""

import pytest

from eval.config import EvalConfig
from eval.run import run
from qwen35_jax.hf.load import load
from qwen35_jax.inference.engine import Engine
from qwen35_jax.processing import Tokenizer
from tests.eval.conftest import write_rows
from tests.eval.test_backends import checkpoint  # noqa: F401  (a fixture)

# A random model seldom ends by itself, so small letters end its responses.
PARITY = """
import string
from eval.protocols import Protocol
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data

def document(row, protocol, examples):
    def score(response):
        correct = sum(response.encode()) % 2 == 0
        return Verdict(correct, {"accuracy": [correct]})
    return Document(row.own_id(), user_turn(row.get("question", str)), score)

stop = tuple(string.ascii_lowercase)
protocols = {name: Protocol("here", stop=stop, cut_is_wrong=name == "card") for name in ("card", "official")}
TASK = Task("parity", Data(("test",)), protocols, document)
"""
LONGEST, SMALLER = 32, (6, 11, 16)
THINKING = {"mode": "thinking", "thinking_budget": 3, "budget_close": "hard"}


@pytest.fixture(scope="module")
def engine(checkpoint):  # noqa: F811
    return Engine(load(checkpoint, "float32"), Tokenizer.from_pretrained(checkpoint), slots=16)


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "card"},
        pytest.param({"protocol": "official"}, marks=pytest.mark.slow),
        pytest.param({"protocol": "card", **THINKING}, marks=pytest.mark.slow),
    ],
)
def test_the_curve_of_one_run_has_the_scores_of_real_runs(engine, tmp_path, settings):
    write_rows(tmp_path / "data" / "parity" / "test.jsonl", [{"question": f"{n}+1?"} for n in range(48)])
    (tmp_path / "parity.py").write_text(PARITY)

    def figures(budget):
        out = str(tmp_path / f"at_{budget}")
        config = EvalConfig(
            tasks=(str(tmp_path / "parity.py"),), data_dir=str(tmp_path / "data"), out=out, max_new_tokens=budget,
            **settings,
        )  # fmt: skip
        return run(config, engine)["tasks"]["parity"]

    long = figures(LONGEST)
    curve = {point["budget"]: point for point in long["curve"]}
    real = {budget: figures(budget) for budget in SMALLER} | {LONGEST: long}
    told = {budget: task["cut_as_wrong"]["accuracy"] for budget, task in real.items()}
    assert {budget: curve[budget] for budget in told} == {
        budget: {"budget": budget} | {name: each[name] for name in ("value", "low", "high")}
        for budget, each in told.items()
    }
    # Every budget cuts other responses.
    cut = [task["cut"]["count"] for _, task in sorted(real.items())]
    assert cut == sorted(set(cut), reverse=True)
    if settings["protocol"] == "card":
        assert all(task["metrics"]["accuracy"] == task["cut_as_wrong"]["accuracy"] for task in real.values())
