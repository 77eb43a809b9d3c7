"""From logical axis names to mesh axes: the one file that knows how anything is split over devices.

Parameters carry logical names (``layers/parameters.py``), activations are constrained by logical names, and
``RULES`` says which mesh axes each name is split over. A name may come with the number of heads that lie along the
axis, ``("heads", 16)``: the axis is then split between heads or not at all.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from qwen35_jax.config import TextConfig

AXES = ("data", "fsdp", "context", "tensor")

GENERATION_AXES = {
    "data": "groups of devices that share out the batch",
    "fsdp": "devices that share out weights and batch",
    "tensor": "devices that share out each layer",
}
"""The axes that generation can use, with what they are for; it cannot split one token at a time over positions."""

Axis = str | tuple[str, int] | None
Axes = Sequence[Axis]

RULES: dict[str, tuple[str, ...]] = {
    # Parameters.
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "norm": (),
    "rank": (),
    # Activations.
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "features": (),
    # The output head while a loss is computed: the vocabulary over every device that shares its tokens.
    "vocab_shards": ("fsdp", "tensor"),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis: sequences are split over ``data`` and ``fsdp``, their tokens over ``context``."""

    data: int = 1
    """Groups of devices that share out the batch; each holds a copy of the weights."""
    fsdp: int = 1
    """Devices that share out the weights and the batch."""
    context: int = 1
    """Devices that share out the tokens of each sequence; for training only."""
    tensor: int = 1
    """Devices that share out each layer."""

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Builds the mesh, as ``make_mesh`` does."""
        return make_mesh(self.data, self.fsdp, self.context, self.tensor, devices=devices)


def make_mesh(
    data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Builds the mesh from axis sizes; a laptop is the default mesh of one device.

    Args:
      devices: what to build it from, by default the devices that JAX sees.

    Raises:
      ValueError: the sizes ask for more devices than there are, or the devices belong to several TPU slices.
    """
    sizes = (data, fsdp, context, tensor)
    if min(sizes) < 1:
        raise ValueError(f"the mesh {_named(sizes)} has a size below 1; each size counts devices along one axis.")
    devices = jax.devices() if devices is None else devices
    wanted, present = math.prod(sizes), len(devices)
    if wanted > present:
        raise ValueError(
            f"the mesh {_named(sizes)} needs {wanted} devices, but there are {present}; choose sizes whose product is "
            f"at most {present}."
        )
    return Mesh(_arrange(devices[:wanted], sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: Sequence[jax.Device], sizes: Sequence[int]) -> np.ndarray:
    """Lays devices out so that those along a mesh axis lie close to each other on the links of a TPU slice."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        raise ValueError(f"the devices belong to {len(slices)} TPU slices, but a mesh lies within one; use one slice.")
    places = np.array([getattr(device, "coords", (number,)) for number, device in enumerate(devices)])
    if np.prod(np.ptp(places, axis=0) + 1) != len(devices):
        return np.asarray(devices).reshape(sizes)  # they fill no box, and JAX arranges nothing else
    # `jax.make_mesh` splits axes of the slice on v5e only: elsewhere it refuses a third of all meshes.
    return create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def check_mesh(
    text: TextConfig, mesh: Mapping[str, int], *, sequences: int | None = None, tokens: int | None = None
) -> None:
    """Checks that a mesh divides a model and, if given, a batch.

    Args:
      mesh: size of each axis.
      sequences: sequences of a batch, or of one micro-batch.
      tokens: tokens of a sequence.

    Raises:
      ValueError: it does not; the message names the nearest meshes of as many devices that do.
    """
    sizes = tuple(mesh[axis] for axis in AXES)
    problems = list(_indivisible(text, sizes, sequences, tokens))
    if not problems:
        return
    total = math.prod(sizes)
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    others = (other for other in itertools.product(divisors, repeat=len(AXES)) if math.prod(other) == total)
    fitting = [other for other in others if not any(_indivisible(text, other, sequences, tokens))]
    fitting.sort(key=lambda other: sum(abs(math.log(new / old)) for new, old in zip(other, sizes, strict=True)))
    nearest = "; ".join(map(_named, fitting[:3]))
    remedy = f"the nearest that fit {total} devices: {nearest}" if nearest else f"no mesh of {total} devices fits"
    raise ValueError(f"the mesh {_named(sizes)} does not fit: {', '.join(problems)}; {remedy}.")


def _indivisible(text: TextConfig, sizes: Sequence[int], sequences: int | None, tokens: int | None) -> Iterator[str]:
    """Names what a mesh of these sizes, in the order of ``AXES``, does not divide."""
    data, fsdp, context, tensor = sizes
    kv_heads = text.num_key_value_heads
    for name, size, parts, axes in (
        ("hidden_size", text.hidden_size, fsdp, "fsdp"),
        ("vocab_size", text.vocab_size, fsdp * tensor, "fsdp*tensor"),
        ("num_attention_heads", text.num_attention_heads, tensor, "tensor"),
        ("linear_num_value_heads", text.linear_num_value_heads, tensor, "tensor"),
        ("intermediate_size", text.intermediate_size, tensor, "tensor"),
        ("the batch's sequences", sequences, data * fsdp, "data*fsdp"),
        # Two halves a device, so that causal attention can be balanced.
        ("tokens in a sequence", tokens, 1 if context == 1 else 2 * context, "2*context"),
    ):
        if size is not None and size % parts:
            yield f"{name}={size} is not a multiple of {axes}={parts}"
    # Where there are fewer key heads than devices, each is copied to several.
    if kv_heads % tensor and tensor % kv_heads:
        yield f"num_key_value_heads={kv_heads} and tensor={tensor} do not divide each other"


def _named(sizes: Sequence[int]) -> str:
    return " ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def spec(logical_axes: Axes) -> PartitionSpec:
    """Turns logical names into a partition spec; ``None`` stays unsplit."""
    return PartitionSpec(*(RULES[_name(axis)] or None if axis else None for axis in logical_axes))


def named_sharding(variable: nnx.Variable, mesh: Mesh) -> NamedSharding:
    """Returns where a parameter lives on ``mesh``; an axis that the mesh does not divide stays whole."""
    return array_sharding(variable.get_metadata("logical_axes"), variable.shape, mesh)


def array_sharding(logical_axes: Axes, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Returns where an array lives on ``mesh``; an axis that the mesh does not divide stays whole."""
    fitted = [
        axis if axis and (size if isinstance(axis, str) else axis[1]) % num_shards(axis, mesh) == 0 else None
        for axis, size in zip(logical_axes, shape, strict=True)
    ]
    return NamedSharding(mesh, spec(fitted))


def num_shards(axis: str | tuple[str, int], mesh: Mesh | AbstractMesh | None = None) -> int:
    """Counts the array shards that a logical axis is split into, by default under the mesh of the context."""
    mesh = current_mesh() if mesh is None else mesh
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in mesh_axes(_name(axis)))


def mesh_axes(*logical_axes: str) -> tuple[str, ...]:
    """Returns the mesh axes that these logical axes are split over, as the collectives below take them."""
    return tuple(axis for name in logical_axes for axis in RULES[name])


def _name(axis: str | tuple[str, int]) -> str:
    return axis if isinstance(axis, str) else axis[0]


def mesh_of(x: jax.Array | jax.ShapeDtypeStruct) -> Mesh | None:
    """Returns the mesh that an array or its shape lies on, None if it was not placed on one."""
    if not isinstance(x.sharding, NamedSharding):
        return None
    assert isinstance(x.sharding.mesh, Mesh)
    return x.sharding.mesh


def constrain(x: jax.Array, logical_axes: Axes) -> jax.Array:
    """Fixes how an activation is split under the current mesh; without a mesh it returns ``x``."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(logical_axes))


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh of the context if it has more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def sequence_shards(num_tokens: int) -> int:
    """Counts the shards that sequences of ``num_tokens`` tokens are split into under the mesh of the context.

    Raises:
      ValueError: the mesh does not split such sequences.
    """
    shards = num_shards("length")
    if shards > 1 and num_tokens > 1 and num_tokens % (2 * shards):
        raise ValueError(
            f"sequences of {num_tokens} tokens cannot be split over mesh.context={shards}; their length must be a "
            f"multiple of {2 * shards}, two halves for each device."
        )
    return shards if num_tokens > 1 else 1


def is_split(**sizes: int) -> bool:
    """Whether there is a mesh of several devices, and it divides these sizes, given by logical axis."""
    mesh = current_mesh()
    return mesh is not None and all(size % num_shards(axis, mesh) == 0 for axis, size in sizes.items())


def current_platform() -> str:
    """Returns what is compiled for: the platform of the mesh of the context, or else the default one."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def kernel_or_plain(kernel: Callable, plain: Callable, fits: bool) -> Callable:
    """Returns a TPU's kernel where it is compiled for one and the kernel ``fits`` the shapes, else the plain form."""
    return kernel if fits and current_platform() == "tpu" else plain


def over_mesh(function: Callable, *args: Any, in_axes: Sequence[Axes], out_axes: Any) -> Any:
    """Calls ``function`` on every device of the current mesh with that device's shard of the arguments.

    Without a mesh it is a plain call. Inside, collectives name mesh axes.

    Args:
      args: arrays, or ``None`` for an absent one.
      in_axes: logical axes of each argument. A name that some argument's size does not divide is left whole.
      out_axes: logical axes of the result, or a tuple of such for a tuple.
    """
    mesh = current_mesh()
    if mesh is None:
        return function(*args)
    whole = {
        name
        for arg, axes in zip(args, in_axes, strict=True)
        if arg is not None
        for name, size in zip(axes, arg.shape, strict=True)
        if name is not None and size % num_shards(name, mesh)
    }

    def fitted(axes):
        if any(isinstance(axis, tuple) for axis in axes):
            return tuple(map(fitted, axes))
        return spec([None if axis in whole else axis for axis in axes])

    in_specs = tuple(PartitionSpec() if arg is None else fitted(axes) for arg, axes in zip(args, in_axes, strict=True))
    # Values that are equal on several devices are not tracked: scans would need their starts marked.
    return jax.shard_map(function, in_specs=in_specs, out_specs=fitted(out_axes), check_vma=False)(*args)


def gather_over(axes: tuple[str, ...], x: jax.Array, *, axis: int) -> jax.Array:
    """Joins along ``axis`` what the devices along mesh axes hold; without mesh axes it returns ``x``."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


def sum_over(axes: tuple[str, ...], tree: Any) -> Any:
    """Adds up the arrays of all devices along mesh axes; without mesh axes it returns ``tree``."""
    return jax.lax.psum(tree, axes) if axes else tree


def scatter_sum_over(axes: tuple[str, ...], x: jax.Array, *, axis: int) -> jax.Array:
    """Adds up the arrays of all devices along mesh axes and leaves each device its own shard along ``axis``."""
    return jax.lax.psum_scatter(x, axes, scatter_dimension=axis, tiled=True) if axes else x


def shard_index(axis: str) -> jax.Array:
    """Returns which shard of a logical axis this device holds. Call it inside ``over_mesh``."""
    return jax.lax.axis_index(mesh_axes(axis))


def gather_shards(x: jax.Array, axis: str, *, along: int | None = None) -> jax.Array:
    """Gathers the shards of all devices along a logical axis. Call it inside ``over_mesh``.

    Args:
      along: the array axis to join the shards at; by default they are stacked along a new first axis.
    """
    return jax.lax.all_gather(x, mesh_axes(axis), axis=along or 0, tiled=along is not None)


def send_shards(x: jax.Array, axis: str, pairs: Sequence[tuple[int, int]]) -> jax.Array:
    """Sends arrays from shard to shard of a logical axis, by (source, target); shards that get none hold zeros."""
    return jax.lax.ppermute(x, mesh_axes(axis), pairs)
