"""What a compiled program does, read from the text of its optimised HLO module (``compiled.as_text()``).

Nothing runs and no device is needed: a program compiled ahead of time for a TPU is read like one for this machine.
``cost_analysis()`` of JAX counts the body of a loop once; here a loop counts as often as it runs.
"""

from qwen35_jax.planning.hlo.costs import Collective, Costs, array_shapes, read_costs

__all__ = ["Collective", "Costs", "array_shapes", "read_costs"]
