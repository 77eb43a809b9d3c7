"""Full fine-tuning of Qwen3.5-2B-Base with the MTP loss, on one host of 8 devices (v5e:2x4).

    python -m train.sft configs/sft_full_2b.py --data.path data/train.jsonl --workdir runs/sft_full_2b

Computes in bfloat16 on float32 weights. On another number of devices, change the mesh: --mesh.fsdp 4.
Not measured on a TPU yet.
"""

from train.config import CheckpointConfig, DataConfig, MeshConfig, ModelSource, MtpLossConfig, OptimConfig, SFTConfig


def config() -> SFTConfig:
    return SFTConfig(
        model=ModelSource(path="Qwen/Qwen3.5-2B-Base", dtype="bfloat16", param_dtype="float32", remat="block"),
        data=DataConfig(path="data/train.jsonl", sequence_length=4096, rows_per_batch=32),
        steps=1_000,
        accumulation=4,
        optim=OptimConfig(learning_rate=1e-5, warmup_steps=50, weight_decay=0.1),
        mtp=MtpLossConfig(weight=0.1),
        mesh=MeshConfig(fsdp=8),
        checkpoint=CheckpointConfig(every=200),
    )
