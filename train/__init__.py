"""Training: supervised fine-tuning with and without adapters. Run from the checkout: ``python -m train.sft``."""
