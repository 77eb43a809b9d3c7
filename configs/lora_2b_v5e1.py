"""LoRA fine-tuning of Qwen3.5-2B-Base with the MTP loss on a single TPU v5e chip.

    python -m train.sft configs/lora_2b_v5e1.py --data.path data/train.jsonl --workdir runs/lora_2b
    python -m train.sft configs/lora_2b_v5e1.py --plan v5e:1x1

Planned: 6.1 of 15.8 GiB of HBM a chip; a step takes 4.58 s at least, 10.23 s by the compiler's estimate.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Options,
    Recipe,
    Supervised,
    TrainConfig,
)

TOPOLOGY = "v5e:1x1"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/train.jsonl", sequence_length=4096, sequences_per_batch=16),
            steps=1_000,
            # One row at a time; the batch is that of 16.
            accumulation=16,
            optim=OptimConfig(learning_rate=2e-4, warmup=30),
            lora=LoraConfig(rank=16, alpha=32.0, targets=("attention", "deltanet", "mlp", "mtp")),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        options=Options(checkpoint=CheckpointConfig(every=100)),
    )
