"""Distillation of Qwen3.5-9B into Qwen3.5-2B-Base with the teacher on the same chips, on a TPU v5e-8.

    python -m train.distill configs/distill_live_9b_to_2b.py --data.path data/train.jsonl --workdir runs/distill_live
    python -m train.distill configs/distill_live_9b_to_2b.py --plan v5e:2x4

Every batch passes through the teacher first. Its last hidden states go to the student's step, which computes the exact
divergence from them.

Planned: 11.3 of 15.8 GiB of HBM a chip; a step takes 1.50 s at least, 3.18 s by the compiler's estimate.
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

TOPOLOGY = "v5e:2x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/train.jsonl", sequence_length=8192, sequences_per_batch=8),
            steps=1_000,
            optim=OptimConfig(learning_rate=1e-5, warmup=50),
            objective=Distillation(teacher=TeacherConfig(path="Qwen/Qwen3.5-9B")),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=8), loss_chunk=128),
        options=Options(checkpoint=CheckpointConfig(every=200)),
    )
