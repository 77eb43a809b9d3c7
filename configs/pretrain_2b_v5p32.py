"""Continued pre-training of Qwen3.5-2B-Base on plain text, on a TPU v5p-32 (16 chips, 4 hosts).

    python -m train.sft configs/pretrain_2b_v5p32.py --data.path 'data/*.parquet' --workdir /shared/pretrain_2b
    python -m train.sft configs/pretrain_2b_v5p32.py --plan v5p:2x2x4

Rows are ``{"text": ...}``; every token trains. A batch holds half a million tokens.

Planned: 20.5 of 95.7 GiB of HBM a chip; a step takes 1.37 s at least, 3.72 s by the compiler's estimate.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Layout,
    MeshConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Options,
    Recipe,
    Supervised,
    TrainConfig,
)

TOPOLOGY = "v5p:2x2x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/*.parquet", sequence_length=8192, sequences_per_batch=64),
            steps=10_000,
            optim=OptimConfig(learning_rate=3e-5, warmup=500, final_fraction=0.1, weight_decay=0.1),
            objective=Supervised(mtp=MtpLossConfig(weight=0.3)),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=16)),
        options=Options(checkpoint=CheckpointConfig(every=500)),
    )
