"""Full fine-tuning of Qwen3.5-2B on conversations with images on a TPU v5e-8; the vision tower stays as it is.

    python -m train.sft configs/sft_vision_2b.py --data.path data/train.jsonl --workdir runs/sft_vision_2b
    python -m train.sft configs/sft_vision_2b.py --plan v5e:2x4

A sequence holds 8,192 tokens and 24,576 patches: six images of a megapixel with 340 tokens of text each fill both. To
train the tower too, add `--train all tower merger`: 12.0 GiB a chip, and 1.35 to 3.73 s a step. docs/data.md shows the
rows.

Planned: 10.1 of 15.8 GiB of HBM a chip; a step takes 0.92 s at least, 2.41 s by the compiler's estimate.
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
    VisionDataConfig,
)

TOPOLOGY = "v5e:2x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B"),
            data=DataConfig(
                path="data/train.jsonl",
                sequence_length=8192,
                sequences_per_batch=8,
                vision=VisionDataConfig(max_pixels=1_048_576, patches_per_sequence=24_576),
            ),
            steps=1_000,
            optim=OptimConfig(learning_rate=1e-5, warmup=50, weight_decay=0.1),
            objective=Supervised(mtp=MtpLossConfig(weight=0.1)),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=8)),
        options=Options(checkpoint=CheckpointConfig(every=200)),
    )
