"""From logical axis names to mesh axes: the one place that knows how anything is split over devices.

Parameters carry logical names (``layers/parameters.py``), activations are constrained by logical names, and
``RULES`` says which mesh axis each name is split over.
"""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # Parameters.
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    "rank": None,
    # Activations.
    "batch": ("data", "fsdp"),
    "length": "context",
    "features": None,
}


def make_mesh(
    data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Builds the mesh from axis sizes; a laptop is the default mesh of one device.

    Args:
      devices: what to build it from, by default the devices that JAX sees.

    Raises:
      ValueError: the sizes ask for more devices than there are.
    """
    sizes = (data, fsdp, context, tensor)
    devices = jax.devices() if devices is None else devices
    wanted, present = int(np.prod(sizes)), len(devices)
    if min(sizes) < 1 or wanted > present:
        shape = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(f"mesh {shape} needs {wanted} devices, but there are {present}; choose sizes of at least 1 "
                         f"whose product is at most {present}.")  # fmt: skip
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:wanted])


def spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """Turns logical names into a partition spec; ``None`` stays unsplit."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in logical_axes))


def named_sharding(variable: nnx.Variable, mesh: Mesh) -> NamedSharding:
    """Returns where a parameter lives on ``mesh``; an axis that the mesh does not divide stays whole."""
    axes = spec(variable.get_metadata("logical_axes"))
    fitted = [
        axis if axis is None or size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, variable.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*fitted))


def constrain(x: jax.Array, logical_axes: Sequence[str | None]) -> jax.Array:
    """Fixes how an activation is split under the current mesh; without a mesh it returns ``x``."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(logical_axes))
