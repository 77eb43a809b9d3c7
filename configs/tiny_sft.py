"""LoRA fine-tuning with the MTP loss of any small Qwen3.5 checkpoint, on any machine.

    python -m train.sft configs/tiny_sft.py --model.path DIR --data.path FILE.jsonl --workdir runs/tiny_sft

By default it takes the base model and the training set that `make quickstart` leaves in runs/quickstart.
The global batch is 8 packed rows.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Layout,
    LoraConfig,
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
            model=ModelSource(path="runs/quickstart/base/export", dtype="float32"),
            data=DataConfig(path="runs/quickstart/data/train.jsonl", sequence_length=256, sequences_per_batch=8),
            steps=200,
            optim=OptimConfig(learning_rate=7e-3, warmup=10, weight_decay=0.0),
            lora=LoraConfig(rank=16, alpha=32.0, targets=("attention", "deltanet", "mlp", "mtp")),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(remat="none"),
        options=Options(checkpoint=CheckpointConfig(every=100)),
    )
