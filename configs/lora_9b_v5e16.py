"""LoRA fine-tuning of Qwen3.5-9B-Base with the MTP loss on a TPU v5e-16 (4 hosts).

    python -m train.sft configs/lora_9b_v5e16.py --data.path data/train.jsonl --workdir runs/lora_9b
    python -m train.sft configs/lora_9b_v5e16.py --plan v5e:4x4

The weights, 18 GB in bfloat16, do not fit a chip: they are split over all of them and gathered layer by layer.

Planned: 6.3 of 15.8 GiB of HBM a chip; a step takes 2.22 s at least, 4.96 s by the compiler's estimate.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Layout,
    LoraConfig,
    MeshConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Options,
    Recipe,
    Supervised,
    TrainConfig,
)

TOPOLOGY = "v5e:4x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-9B-Base"),
            data=DataConfig(path="data/train.jsonl", sequence_length=4096, sequences_per_batch=32),
            steps=1_000,
            accumulation=2,
            optim=OptimConfig(learning_rate=1e-4, warmup=30),
            lora=LoraConfig(rank=16, alpha=32.0, targets=("attention", "deltanet", "mlp", "mtp")),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=16)),
        options=Options(checkpoint=CheckpointConfig(every=100)),
    )
