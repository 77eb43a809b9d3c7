"""Exact-match question answering of any small Qwen3.5 checkpoint, greedy; minutes on a CPU.

    python -m eval.run configs/tiny_eval.py --model.path DIR --data-dir DATA --out runs/tiny_eval

DATA/qa/test.jsonl holds rows {"question", "answer"}; --mode thinking evaluates with the think block open.
"""

from eval.config import EvalConfig
from qwen35_jax.hf.source import ModelSource


def config() -> EvalConfig:
    """Returns the settings of the run."""
    return EvalConfig(
        model=ModelSource(dtype="float32"),
        tasks=("qa",),
        mode="non_thinking",
        protocol="official",
        max_new_tokens=128,
        slots=32,
        out="runs/tiny_eval",
    )
