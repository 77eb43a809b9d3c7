"""Distillation on answers that the student samples, as ``labels.py`` trains in all else.

python -m train.distill examples/distillation/on_policy.py --model.path DIR --teacher.path DIR --data.path FILE.jsonl
"""

from dataclasses import replace

from examples.distillation import distill, labels
from train.config import RolloutConfig, TrainConfig

# Four documents of this length fill a sequence. One answer a question gives a batch the most questions.
_ROLLOUTS = RolloutConfig(answers=1, max_prompt_tokens=22, max_new_tokens=26)


def config() -> TrainConfig:
    return labels.config().replace(objective=replace(distill.OBJECTIVE, rollouts=_ROLLOUTS))
