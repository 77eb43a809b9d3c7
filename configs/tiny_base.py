"""Full fine-tuning with the MTP loss of a tiny random checkpoint on plain text, as `make quickstart` does it.

    python -m train.sft configs/tiny_base.py --model.path DIR --data.path FILE.jsonl --workdir runs/tiny_base

By default it takes the checkpoint and the text that `make quickstart` leaves in runs/quickstart.
"""

from train.config import CheckpointConfig, DataConfig, ModelSource, MtpLossConfig, OptimConfig, SFTConfig


def config() -> SFTConfig:
    """Returns the settings of the run."""
    return SFTConfig(
        model=ModelSource(path="runs/quickstart/random", dtype="float32", remat="none"),
        data=DataConfig(path="runs/quickstart/data/base.jsonl", sequence_length=256, rows_per_batch=4),
        steps=500,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=20, weight_decay=0.01),
        mtp=MtpLossConfig(weight=0.1),
        checkpoint=CheckpointConfig(every=200),
    )
