"""LoRA fine-tuning of Qwen3.5-2B-Base at its whole context, 262,144 tokens, on a TPU v5p-16 (8 chips, 2 hosts).

    python -m train.sft configs/long_lora_2b_v5p16.py --data.path data/long.jsonl --workdir runs/long_lora_2b
    python -m train.sft configs/long_lora_2b_v5p16.py --plan v5p:2x2x2

Every row is split over all chips, 32,768 tokens each.

Planned: 21.9 of 95.7 GiB of HBM a chip; a step takes 15.42 s at least, 22.17 s by the compiler's estimate.
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

TOPOLOGY = "v5p:2x2x2"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B-Base"),
            data=DataConfig(path="data/long.jsonl", sequence_length=262_144, sequences_per_batch=4),
            steps=500,
            accumulation=4,
            optim=OptimConfig(learning_rate=1e-4, warmup=20),
            lora=LoraConfig(rank=16, alpha=32.0, targets=("attention", "deltanet", "mlp", "mtp")),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(mesh=MeshConfig(context=8)),
        options=Options(checkpoint=CheckpointConfig(every=50)),
    )
