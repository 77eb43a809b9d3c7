"""Scoring of models and of stored responses; run from the checkout with ``python -m eval.run``."""

from qwen35_jax.interrupts import end_quietly_while_importing

end_quietly_while_importing()
