"""What the backward pass computes again instead of keeping it."""

from functools import partial

import jax

# For elementwise work between matrix products: its backward pass keeps the inputs alone. XLA may still merge the second
# computation with the first (prevent_cse=False): inside a scan over layers they lie in different loops and cannot be
# merged, and a barrier would keep the second one from fusing with its neighbours.
recomputed = partial(jax.checkpoint, prevent_cse=False)
