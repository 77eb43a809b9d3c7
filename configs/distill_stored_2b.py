"""Distillation of Qwen3.5-9B into Qwen3.5-2B-Base from a stored signal, on a TPU v5e-8.

    python -m train.teach   configs/distill_stored_2b.py --data.path data/train.jsonl --teacher.store stores/9b
    python -m train.distill configs/distill_stored_2b.py --data.path data/train.jsonl --teacher.store stores/9b

The first command stores the teacher's 64 most likely tokens at every trained position, 388 bytes each. The second one
needs no teacher, and can run as often as you like.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Distillation,
    Layout,
    MeshConfig,
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
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/train.jsonl", sequence_length=8192, sequences_per_batch=8),
            steps=1_000,
            optim=OptimConfig(learning_rate=1e-5, warmup=50),
            objective=Distillation(
                teacher=TeacherConfig(path="Qwen/Qwen3.5-9B", store="stores/qwen3.5-9b", signal="topk", k=64)
            ),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=8)),
        options=Options(checkpoint=CheckpointConfig(every=200)),
    )
