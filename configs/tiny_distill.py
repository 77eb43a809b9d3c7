"""Distillation of any small Qwen3.5 checkpoint into another, on any machine.

    python -m train.distill configs/tiny_distill.py --model.path DIR --teacher.path DIR --data.path FILE.jsonl

By default the teacher is the model that `make quickstart` leaves, and the student the base that it started from.
The global batch is 8 packed rows.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Distillation,
    Layout,
    ModelSource,
    OptimConfig,
    Options,
    Recipe,
    TeacherConfig,
    TrainConfig,
)


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="runs/quickstart/base/export", dtype="float32"),
            data=DataConfig(path="runs/quickstart/data/train.jsonl", sequence_length=128, sequences_per_batch=8),
            steps=200,
            optim=OptimConfig(learning_rate=1e-3, warmup=10),
            objective=Distillation(teacher=TeacherConfig(path="runs/quickstart/merged", dtype="float32")),
        ),
        layout=Layout(remat="none"),
        options=Options(checkpoint=CheckpointConfig(every=100)),
    )
