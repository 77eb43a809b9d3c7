"""Training: supervised fine-tuning with and without adapters. Run from the checkout: ``python -m train.sft``."""

from qwen35_jax.interrupts import end_quietly_while_importing

end_quietly_while_importing()
