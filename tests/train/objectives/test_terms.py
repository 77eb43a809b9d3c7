"""An objective of a run file whose terms have names of their own works from the bar to the best checkpoint."""

import json

import jax.numpy as jnp
import pytest

from tests.train.launching import LORA, timeless
from train.objectives.terms import Objective, check_terms
from train.observe.metrics import METRICS, read_entries

FOCAL = '''
import dataclasses
import json

import jax
from configs.tiny_sft import config as tiny
from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy
from train.config import Supervised
from train.observe.metrics import METRICS, read_entries
from train.objectives.terms import Objective, count_targets, shifted_targets


@dataclasses.dataclass(frozen=True)
class Focal(Supervised):
    """The cross-entropy and the size of the hidden states, each of all trained tokens."""

    size_weight: float = 0.25

    def make(self, *, loss_chunk, remat, validates=False):
        def sums(model, batch, dropout_key, teacher_head=None):
            hidden, _ = model.forward(batch["input_ids"], batch["segment_ids"], remat=remat, dropout_key=dropout_key)
            targets, weights = shifted_targets(batch, 1)
            surprise = linear_cross_entropy(hidden, model.head_weight(), targets, weights, chunk_tokens=loss_chunk)
            return {"surprise": surprise, "size": (weights * abs(hidden).mean(-1)).sum()}

        def counts(batch):
            return dict.fromkeys(("surprise", "size"), count_targets(batch, 1))

        return Objective({"surprise": 1.0, "size": self.size_weight}, counts, sums)


class Notes:
    """A tracker that writes what it is handed."""

    def start(self, run):
        self.file = open(run.workdir / "notes.jsonl", "w")
        self.step({"steps": run.record["recipe"]["steps"], "first_step": run.first_step})

    def step(self, entry, texts=()):
        print(json.dumps(entry), file=self.file)

    def end(self):
        self.file.close()


def config():
    run = tiny()
    mtp = dataclasses.replace(run.recipe.objective.mtp, weight=0.0)
    lora = dataclasses.replace(run.recipe.lora, targets=("attention", "deltanet", "mlp"))
    return run.replace(objective=Focal(mtp=mtp), lora=lora, trackers=(Notes,))
'''
OPTIONS = (
    *LORA, "--steps", "4", "--checkpoint.every", "3", "--data.eval-fraction", "0.1", "--evaluate-every", "2",
    "--checkpoint.best-by", "eval_surprise", "--size-weight", "0.5", "--health.policy", "skip",
    "--health.max-grad-norm", "1e9", "--report-to", "none",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_whose_objective_has_no_term_named_loss(command, tmp_path):
    (tmp_path / "focal.py").write_text(FOCAL)
    workdir = tmp_path / "run"
    processes = command.start(workdir, *OPTIONS, config=str(tmp_path / "focal.py"))
    out, err = processes[0].communicate(timeout=600)
    assert processes[0].returncode == 0, err
    rows = timeless(workdir)
    assert all(row["surprise"] > 0 and row["size"] > 0 and "loss" not in row and "mtp_loss" not in row for row in rows)
    assert [row["step"] for row in rows if "eval_surprise" in row and "eval_size" in row] == [2, 4]
    assert rows[3]["surprise"] < rows[0]["surprise"]
    assert "surprise=" in err and "size=" in err and "eval_surprise=" in err
    assert (workdir / "plots" / "losses.png").is_file()
    assert "is the best, with eval_surprise" in out
    assert not (workdir / "tensorboard").exists()
    started, *noted = map(json.loads, (workdir / "notes.jsonl").read_text().splitlines())
    assert started == {"steps": 4, "first_step": 1} and noted == read_entries(workdir / METRICS)
    record = json.loads((workdir / "config.json").read_text())
    assert record["options"]["trackers"][0].endswith(".Notes")
    assert record["outcome"]["best"]["step"] == 4 and record["recipe"]["objective"]["size_weight"] == 0.5


@pytest.mark.parametrize(
    ("weights", "sums", "counts", "message"),
    [
        ({"a": 1.0}, "ab", "ab", r"weights of a, sums of a, b and counts of a, b"),
        ({"a": 1.0, "b": 1.0}, "ab", "a", r"weights of a, b, sums of a, b and counts of a;"),
        ({}, "", "", r"has no term"),
        ({"tokens": 1.0}, ["tokens"], ["tokens"], r"term 'tokens', which .* call it otherwise"),
        ({"eval_x": 1.0}, ["eval_x"], ["eval_x"], r"term 'eval_x'"),
        ({"x_seconds": 1.0}, ["x_seconds"], ["x_seconds"], r"term 'x_seconds'"),
    ],
)
def test_terms_that_do_not_fit_are_named(weights, sums, counts, message):
    make = lambda names: {name: jnp.float32(1) for name in names}  # noqa: E731
    objective = Objective(weights, lambda batch: make(counts), lambda *_: make(sums))
    with pytest.raises(ValueError, match=message):
        check_terms(objective, objective.sums(None, None, None), objective.counts(None))
