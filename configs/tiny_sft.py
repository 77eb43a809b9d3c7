"""LoRA fine-tuning with the MTP loss of any small Qwen3.5 checkpoint, on any machine.

    python -m train.sft configs/tiny_sft.py --model.path DIR --data.path FILE.jsonl --workdir runs/tiny_sft

By default it takes the base model and the training set that `make quickstart` leaves in runs/quickstart.
The global batch is 8 packed rows.
"""

from train.config import CheckpointConfig, DataConfig, LoraConfig, ModelSource, MtpLossConfig, OptimConfig, SFTConfig


def config() -> SFTConfig:
    return SFTConfig(
        model=ModelSource(path="runs/quickstart/base/export", dtype="float32", remat="none"),
        data=DataConfig(path="runs/quickstart/data/train.jsonl", sequence_length=256, rows_per_batch=8),
        steps=200,
        optim=OptimConfig(learning_rate=7e-3, warmup_steps=10, weight_decay=0.0),
        lora=LoraConfig(rank=16, alpha=32.0, targets=("attention", "deltanet", "mlp", "mtp")),
        mtp=MtpLossConfig(weight=0.1),
        checkpoint=CheckpointConfig(every=100),
    )
