"""Distillation on conversations, as ``labels.py`` trains in all else.

python -m train.distill examples/distillation/distill.py --model.path DIR --teacher.path DIR --data.path FILE.jsonl
"""

from examples.distillation import labels
from train.config import Distillation, MtpDistillConfig, TeacherConfig, TrainConfig

OBJECTIVE = Distillation(
    teacher=TeacherConfig(path="runs/distillation/teacher/export", dtype="float32", k=16),
    mtp=MtpDistillConfig(weight=0),
)


def config() -> TrainConfig:
    return labels.config().replace(objective=OBJECTIVE)
