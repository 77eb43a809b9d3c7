"""On-policy distillation of Qwen3.5-9B into Qwen3.5-2B on a TPU v5e-8.

    python -m train.distill configs/distill_onpolicy_9b_to_2b.py --data.path data/prompts.jsonl --workdir runs/onpolicy
    python -m train.distill configs/distill_onpolicy_9b_to_2b.py --plan v5e:2x4

The student answers the prompts of the data, the conversations up to their last answer, and learns at each of its own
tokens what the teacher would have said there. The student must know the format: begin from a chat model, or with
--model.path from one that was fine-tuned or distilled before. The plan counts
the engine's memory, and leaves the time of sampling out.

Planned: 12.9 of 15.8 GiB of HBM a chip; a step takes 5.86 s at least, 12.63 s by the compiler's estimate.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    Distillation,
    Layout,
    MeshConfig,
    ModelSource,
    OptimConfig,
    Options,
    Recipe,
    RolloutConfig,
    TeacherConfig,
    TrainConfig,
)

TOPOLOGY = "v5e:2x4"


def config() -> TrainConfig:
    return TrainConfig(
        recipe=Recipe(
            model=ModelSource(path="Qwen/Qwen3.5-2B"),
            data=DataConfig(path="data/prompts.jsonl", sequence_length=4096, sequences_per_batch=64),
            steps=200,
            accumulation=4,
            optim=OptimConfig(learning_rate=5e-6, warmup=10),
            objective=Distillation(
                teacher=TeacherConfig(path="Qwen/Qwen3.5-9B"),
                rollouts=RolloutConfig(answers=4, max_prompt_tokens=1024, max_new_tokens=3072),
            ),
        ),
        layout=Layout(mesh=MeshConfig(fsdp=8), loss_chunk=128),
        options=Options(checkpoint=CheckpointConfig(every=20)),
    )
