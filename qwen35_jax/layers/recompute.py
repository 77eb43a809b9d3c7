"""What the backward pass computes again instead of keeping it."""

from functools import partial

import jax

# For elementwise work between matrix products: the backward pass keeps its inputs alone. Without a barrier
# (prevent_cse=False) the second computation fuses with its neighbours. XLA might merge it with the first, but in a scan
# over layers the two lie in different loops.
recomputed = partial(jax.checkpoint, prevent_cse=False)
