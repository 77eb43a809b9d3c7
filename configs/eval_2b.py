"""The five language benchmarks of Qwen3.5-2B's model card, with the sampling that its tables were made with.

    python -m eval.run configs/eval_2b.py --out runs/eval_2b
    python -m eval.run configs/eval_2b.py --mode thinking --out runs/eval_2b_thinking

Evaluates a fine-tune with --model.path runs/lora_2b_merged, or a base with its adapter with --model.path
Qwen/Qwen3.5-2B-Base --model.adapter runs/lora_2b/export. Data come from the hub, or from --data-dir. IFEval needs the
extra `eval` and NLTK's punkt_tab. 46,148 samples of up to 32,768 tokens; `python -m eval.plan` says what they cost. Not
run yet on the 2B weights: it needs an accelerator and the checkpoint, so no time, memory or score is quoted here.
"""

from eval.config import EvalConfig
from qwen35_jax.hf.source import ModelSource


def config() -> EvalConfig:
    """Returns the settings of the run."""
    return EvalConfig(
        model=ModelSource(path="Qwen/Qwen3.5-2B", dtype="bfloat16"),
        tasks=("mmlu_pro", "mmlu_redux", "ceval", "supergpqa", "ifeval"),
        mode="non_thinking",
        protocol="card",
        slots=64,
        out="runs/eval_2b",
    )
