"""The run of `tiny_sft.py`, which also scores itself every 50 steps: how many held-out questions it answers right.

    python -m train.sft configs/tiny_sft_scored.py --workdir runs/tiny_sft_scored

It takes the base model, the training set and the questions that `make quickstart` leaves in runs/quickstart. The
fraction is `eval_qa_accuracy` in metrics.jsonl.
"""

import dataclasses
import tempfile

from configs import tiny_eval, tiny_sft
from eval.run import run
from qwen35_jax.inference.engine import Engine
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer
from train.config import TrainConfig

DATA_DIR = "runs/quickstart/data"


def score(model: Qwen35, tokenizer: Tokenizer, data_dir: str = DATA_DIR) -> dict[str, float]:
    """Answers 64 held-out questions, thinking first."""
    with tempfile.TemporaryDirectory() as out:
        settings = dataclasses.replace(tiny_eval.config(), mode="thinking", data_dir=data_dir, limit=64, out=out)
        results = run(settings, Engine(model, tokenizer, slots=settings.slots))
    return {"qa_accuracy": results["tasks"]["qa"]["metrics"]["accuracy"]["value"]}


def config() -> TrainConfig:
    return tiny_sft.config().replace(evaluate=score, evaluate_every=50)
