"""Full fine-tuning of Qwen3.5-2B-Base with the MTP loss on a TPU v6e-8.

    python -m train.sft configs/full_2b_v6e8.py --data.path data/train.jsonl --workdir runs/full_2b
    python -m train.sft configs/full_2b_v6e8.py --plan v6e:2x4

As on a v5e-8, with twice the batch: a v6e chip has twice the memory.

Planned: 13.3 of 31.2 GiB of HBM a chip; a step takes 0.70 s at least, 1.56 s by the compiler's estimate.
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

TOPOLOGY = "v6e:2x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/train.jsonl", sequence_length=8192, sequences_per_batch=16),
            steps=1_000,
            optim=OptimConfig(learning_rate=1e-5, warmup=50, weight_decay=0.1),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=8)),
        options=Options(checkpoint=CheckpointConfig(every=200)),
    )
