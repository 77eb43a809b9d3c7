"""Full fine-tuning with the MTP loss of a tiny random checkpoint on plain text, as `make quickstart` does it.

    python -m train.sft configs/tiny_base.py --model.path DIR --data.path FILE.jsonl --workdir runs/tiny_base

By default it takes the checkpoint and the text that `make quickstart` leaves in runs/quickstart.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Layout,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Options,
    Recipe,
    Supervised,
    TrainConfig,
)


def config() -> TrainConfig:
    """Returns the settings of the run."""
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="runs/quickstart/random", dtype="float32"),
            data=DataConfig(path="runs/quickstart/data/base.jsonl", sequence_length=256, sequences_per_batch=4),
            steps=500,
            optim=OptimConfig(learning_rate=3e-3, warmup=20, weight_decay=0.01),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(remat="none"),
        options=Options(checkpoint=CheckpointConfig(every=200)),
    )
