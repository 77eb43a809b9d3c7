"""Gives a run file its evaluation in one line: benchmarks that the model in training answers every so many steps.

    return scored(tiny_sft.config(), EvalConfig(tasks=("ifeval",), mode="thinking", limit=64), every=50)

Figures such as `eval_ifeval_prompt_strict`, and `eval_ifeval_cut`, the share of responses that were cut off, stand in
metrics.jsonl, TensorBoard and the plots. The samples are not kept; `eval.run` on a checkpoint writes the same ones.
"""

import dataclasses
import tempfile

from eval.config import EvalConfig
from eval.run import run
from qwen35_jax.inference.engine import Engine
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer
from train.config import TrainConfig


def scored(config: TrainConfig, evaluation: EvalConfig, *, every: int) -> TrainConfig:
    """Returns a run's settings with an evaluation every so many steps and one after the last step."""

    def evaluate(model: Qwen35, tokenizer: Tokenizer) -> dict[str, float]:
        return score(evaluation, model, tokenizer)

    return config.replace(evaluate=evaluate, evaluate_every=every)


def score(evaluation: EvalConfig, model: Qwen35, tokenizer: Tokenizer) -> dict[str, float]:
    """Evaluates a model in training; ``evaluation.model`` and ``evaluation.mesh`` are not used."""
    with tempfile.TemporaryDirectory() as out:
        engine = Engine(
            model, tokenizer, slots=evaluation.slots, cache_tokens=evaluation.cache_tokens,
            speculative_tokens=evaluation.speculative_tokens,
        )  # fmt: skip
        results = run(dataclasses.replace(evaluation, out=out), engine)
    figures = {}
    for task, summary in results["tasks"].items():
        figures[f"{task}_{summary['headline']}"] = summary["metrics"][summary["headline"]]["value"]
        figures[f"{task}_cut"] = summary["cut"]["value"]
    return figures
