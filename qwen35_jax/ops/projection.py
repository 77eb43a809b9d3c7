"""The product of tokens with a weight, and the gradient of the weight in the weight's own layout.

Letters: ``I`` input width, ``O`` output width; the leading axes ``*L`` are batch and tokens.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@jax.custom_vjp
def project(x: Float[Array, "*L I"], weight: Float[Array, "I O"]) -> Float[Array, "*L O"]:
    """Returns ``x W``; the gradient of the weight is computed as ``x^T dy``.

    Automatic differentiation would make it as ``(dy^T x)^T``: two more transposed copies on a CPU.
    """
    return x @ weight


def _project_forward(x, weight):
    return x @ weight, (x, weight)


def _project_backward(residuals, cotangent):
    x, weight = residuals
    return cotangent @ weight.T, sum_of_outer_products(x, cotangent)


project.defvjp(_project_forward, _project_backward)


def sum_of_outer_products(
    x: Float[Array, "*L I"], y: Float[Array, "*L O"], *, dtype: DTypeLike | None = None
) -> Float[Array, "I O"]:
    """Sums ``x^T y`` over all tokens, accumulated and returned in ``dtype`` (by default as a product of the two is)."""
    # XLA's CPU backend copies its operands to contract two axes, and not to contract one. Axes are dropped, not merged,
    # for a merged axis could not stay split over a mesh as its parts are.
    unit_axes = [axis for axis, size in enumerate(x.shape[:-1]) if size == 1]
    x, y = jnp.squeeze(x, unit_axes), jnp.squeeze(y, unit_axes)
    return jnp.einsum("...I,...O->IO", x, y, preferred_element_type=dtype)
