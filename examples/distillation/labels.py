"""Fine-tuning of all weights on conversations: how the teachers, and the arms without one, are trained.

python -m train.sft examples/distillation/labels.py --model.path DIR --data.path FILE.jsonl --steps 400
"""

from train.config import (
    DataConfig,
    Layout,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Options,
    Recipe,
    Supervised,
    TrainConfig,
)


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="runs/distillation/base/export", dtype="float32"),
            data=DataConfig(path="runs/distillation/seed-0/train.jsonl", sequence_length=192, sequences_per_batch=4),
            steps=400,
            optim=OptimConfig(learning_rate=3e-3, warmup=10),
            objective=Supervised(mtp=MtpLossConfig(weight=0)),
        ),
        layout=Layout(remat="none"),
        options=Options(report_to=("none",)),
    )
