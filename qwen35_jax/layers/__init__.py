"""The modules of the network: parameters with logical axes, and calls into ``qwen35_jax.ops``."""
