"""What the backward pass computes again instead of keeping it."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

Remat = Literal["none", "block", "save_dots", "offload"]
"""What the backward pass keeps of a block of layers: everything; its input alone; its input and the results of its
products with weights; its input alone, in the memory of the host."""

REMAT = get_args(Remat)

_BLOCK_INPUT = "block_input"

# For elementwise work between matrix products: the backward pass keeps its inputs alone. Without a barrier
# (prevent_cse=False) the second computation fuses with its neighbours. XLA might merge it with the first, but in a scan
# over layers the two lie in different loops.
recomputed = partial(jax.checkpoint, prevent_cse=False)


def rematerialized(block: Callable, remat: Remat) -> Callable:
    """Returns ``block``, which names its input by ``block_input``, with a backward pass that keeps what ``remat`` says.

    Raises:
      ValueError: there is no such policy.
    """
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r} is unknown; choose one of {', '.join(REMAT)}.")
    if remat == "none":
        return block
    policies = jax.checkpoint_policies
    policy = {
        "block": None,
        "save_dots": policies.dots_with_no_batch_dims_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[_BLOCK_INPUT],
            offload_src="device", offload_dst="pinned_host",
        ),
    }[remat]  # fmt: skip
    return recomputed(block, policy=policy)


def block_input(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Marks the value that the policy ``offload`` moves to the host."""
    return checkpoint_name(x, _BLOCK_INPUT)
