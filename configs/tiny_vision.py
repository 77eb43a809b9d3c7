"""Training of all weights, the vision tower's too, of any small Qwen3.5 checkpoint on images and videos.

    python -m train.sft configs/tiny_vision.py --model.path DIR --data.path FILE.jsonl --workdir runs/tiny_vision

By default it takes what `python -m examples.vision.run` leaves in runs/vision.
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
    VisionDataConfig,
)


def config() -> TrainConfig:
    vision = VisionDataConfig(min_pixels=4096, max_pixels=4096, video_max_pixels=3 * 2 * 4096, patches_per_sequence=256)
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="runs/vision/random", dtype="float32"),
            data=DataConfig(path="runs/vision/train.jsonl", sequence_length=384, sequences_per_batch=8, vision=vision),
            steps=1000,
            train=("all", "tower", "merger"),
            optim=OptimConfig(learning_rate=1.2e-3, warmup=50, weight_decay=0.01),
            objective=Supervised(mtp=MtpLossConfig(weight=0.0)),
        ),
        layout=Layout(remat="none"),
        options=Options(checkpoint=CheckpointConfig(every=300)),
    )
