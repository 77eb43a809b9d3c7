"""LoRA fine-tuning of Qwen3.5-2B-Base with the MTP loss, on one host of 8 devices (v5e:2x4).

    python -m train.sft configs/sft_lora_2b.py --data.path data/train.jsonl --workdir runs/sft_lora_2b

On another number of devices, change the mesh: --mesh.fsdp 4. Not measured on a TPU yet.
"""

from train.config import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    SFTConfig,
)


def config() -> SFTConfig:
    return SFTConfig(
        model=ModelSource(path="Qwen/Qwen3.5-2B-Base", dtype="bfloat16", remat="block"),
        data=DataConfig(path="data/train.jsonl", sequence_length=4096, rows_per_batch=32),
        steps=1_000,
        accumulation=4,
        optim=OptimConfig(learning_rate=2e-4, warmup_steps=30, weight_decay=0.0),
        lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05, targets=("attention", "deltanet", "mlp", "mtp")),
        mtp=MtpLossConfig(weight=0.1),
        mesh=MeshConfig(fsdp=8),
        checkpoint=CheckpointConfig(every=100),
    )
