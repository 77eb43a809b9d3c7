"""The run of `tiny_sft.py`, which also scores itself every 50 steps: how many held-out questions it answers right.

    python -m train.sft configs/tiny_sft_scored.py --workdir runs/tiny_sft_scored

It takes the base model, the training set and the questions that `make quickstart` leaves in runs/quickstart. The
fraction is `eval_qa_accuracy` in metrics.jsonl.
"""

import dataclasses

from configs import tiny_eval, tiny_sft
from configs.scoring import scored
from train.config import TrainConfig


def config() -> TrainConfig:
    questions = dataclasses.replace(tiny_eval.config(), mode="thinking", data_dir="runs/quickstart/data", limit=64)
    return scored(tiny_sft.config(), questions, every=50)
