"""The vision benchmarks of Qwen3.5-2B's model card, with the sampling that its tables were made with.

    python -m eval.run configs/eval_vision_2b.py --data-dir DATA --out runs/eval_vision_2b
    python -m eval.run configs/eval_vision_2b.py --mode thinking --data-dir DATA --out runs/eval_vision_2b_thinking

docs/evaluating_vision.md says which files DATA holds. RefCOCO has 57,457 questions, Video-MME 900 videos of up to an
hour; leave them out with --tasks. Not run yet on the 2B weights: it needs an accelerator and the checkpoint, so no
time, memory or score is quoted here.
"""

from eval.config import EvalConfig
from qwen35_jax.hf.source import ModelSource


def config() -> EvalConfig:
    """Returns the settings of the run."""
    return EvalConfig(
        model=ModelSource(path="Qwen/Qwen3.5-2B", dtype="bfloat16"),
        tasks=("mmmu", "mathvista", "realworldqa", "mmbench", "ocrbench", "refcoco", "videomme"),
        mode="non_thinking",
        protocol="card",
        slots=64,
        out="runs/eval_vision_2b",
    )
