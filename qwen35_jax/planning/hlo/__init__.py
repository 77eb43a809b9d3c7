"""Reads what a compiled program does from the text of its optimised HLO module (``compiled.as_text()``).

This runs nothing and needs no device: a program that was compiled ahead of time for a TPU is read like one for this
machine. JAX's ``cost_analysis()`` counts the body of a loop once; here a loop counts as often as it runs.
"""

from qwen35_jax.planning.hlo.costs import Collective, Costs, array_shapes, read_costs

__all__ = ["Collective", "Costs", "array_shapes", "read_costs"]
