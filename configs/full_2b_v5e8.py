"""Full fine-tuning of Qwen3.5-2B-Base with the MTP loss on a TPU v5e-8.

    python -m train.sft configs/full_2b_v5e8.py --data.path data/train.jsonl --workdir runs/full_2b
    python -m train.sft configs/full_2b_v5e8.py --plan v5e:2x4

Computes in bfloat16 on float32 weights, which are split over all chips with their optimizer state.

Planned: 9.8 of 15.8 GiB of HBM a chip; a step takes 0.80 s at least, 1.80 s by the compiler's estimate.
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

TOPOLOGY = "v5e:2x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/train.jsonl", sequence_length=8192, sequences_per_batch=8),
            steps=1_000,
            optim=OptimConfig(learning_rate=1e-5, warmup=50, weight_decay=0.1),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=8)),
        options=Options(checkpoint=CheckpointConfig(every=200)),
    )
