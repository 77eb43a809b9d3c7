"""What a batch holds, and how it comes onto the mesh.

An objective declares its arrays as `Fields`: for each name a dtype and logical axes, the first of which counts the
sequences. Everything here works for any declared fields. On the mesh a batch is cut into micro-batches.

Letters: A accumulation steps, B sequences of a micro-batch, T tokens of a sequence.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array

from qwen35_jax.sharding import Axes, num_shards, spec

HostBatch = Mapping[str, np.ndarray]
"""Arrays of the host by field, each with all its sequences along the first axis."""

Batch = Mapping[str, Array]
"""Arrays by field: [A, B, ...] on the mesh, [B, ...] inside a micro-batch."""

_TOKENS = "length"


@dataclass(frozen=True)
class Field:
    """One array of a batch: [B, T] by default, [B, T, k] or [B, P, F] where the axes say so."""

    dtype: DTypeLike
    axes: Axes = ("batch", _TOKENS)
    """Logical axes (see ``qwen35_jax.sharding``), None for one that is never split. The first is ``batch``; an axis
    named ``length`` has as many places as a sequence has tokens."""
    sizes: tuple[int, ...] = ()
    """Sizes of the other axes, in their order."""

    def __post_init__(self):
        if not self.axes or self.axes[0] != "batch":
            raise ValueError(f"the axes {self.axes} of a batch field must begin with 'batch', which counts sequences.")
        own = len(self.axes) - 1 - (_TOKENS in self.axes)
        if own != len(self.sizes):
            raise ValueError(
                f"a batch field with the axes {self.axes} needs {own} sizes, but has sizes={self.sizes}; give one for "
                f"each axis besides 'batch' and {_TOKENS!r}."
            )

    @property
    def is_per_token(self) -> bool:
        """Whether the field has a value, or an array of them, for each token."""
        return self.axes[1:2] == (_TOKENS,)

    def shape(self, sequences: int, tokens: int) -> tuple[int, ...]:
        """Returns the shape of the array that holds so many sequences of so many tokens."""
        sizes = iter(self.sizes)
        return sequences, *(tokens if axis == _TOKENS else next(sizes) for axis in self.axes[1:])


Fields = Mapping[str, Field]
"""The arrays of a batch by their names."""

TOKEN_FIELDS: Fields = MappingProxyType(
    {"input_ids": Field(jnp.int32), "segment_ids": Field(jnp.int32), "trained": Field(jnp.bool_)}
)
"""What packed documents give: ``segment_ids`` are 0 for padding and 1, 2, ... for the documents of a sequence;
``trained[t]`` says that token t is a target."""


def vision_fields(patches: int, patch_dim: int) -> Fields:
    """Returns what images and videos add to a batch (`qwen35_jax.vision.patches`), and the positions of the tokens.

    ``positions`` are the temporal, height and width positions of each token, which restart with each document.

    Args:
      patches: of each sequence, padding included.
      patch_dim: values of a patch.
    """
    return {
        "positions": Field(jnp.int32, ("batch", _TOKENS, None), (3,)),
        "pixels": Field(jnp.uint8, ("batch", None, None), (patches, patch_dim)),
        "frames": Field(jnp.int32, ("batch", None), (patches,)),
        "places": Field(jnp.int32, ("batch", None, None), (patches, 4)),
    }


def sequences_of_process(*, sequences: int, accumulation: int, mesh: Mesh, process: int | None = None) -> range:
    """Returns which sequences of a batch a process must feed, by default this one.

    Sequence ``s`` belongs to micro-batch ``s % accumulation``. Neighbouring sequences are dealt to the array shards of
    one process, wherever these stand in the array. So processes that share no array shard share no sequence, and the
    mesh may order its devices as the links between them want it.
    """
    process = jax.process_index() if process is None else process
    dealt = _deal(mesh)
    fed = [place for place, (_, owners) in enumerate(dealt) if process in owners]
    per_shard = sequences // len(dealt)
    return range(fed[0] * per_shard, (fed[-1] + 1) * per_shard)


@functools.lru_cache(maxsize=8)
def _deal(mesh: Mesh) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Lists the array shards of the batch axis, with the processes that hold them, as sequences are dealt to them."""
    count = num_shards("batch", mesh)
    owners: list[set[int]] = [set() for _ in range(count)]
    for device, (index,) in NamedSharding(mesh, spec(("batch",))).devices_indices_map((count,)).items():
        owners[index.indices(count)[0]].add(device.process_index)
    held = [(shard, tuple(sorted(processes))) for shard, processes in enumerate(owners)]
    return tuple(sorted(held, key=lambda each: (each[1], each[0])))


def put_batch(
    batch: HostBatch,
    *,
    accumulation: int,
    mesh: Mesh,
    fields: Fields = TOKEN_FIELDS,
    num_sequences: int | None = None,
    first_sequence: int = 0,
) -> dict[str, jax.Array]:
    """Places arrays of the host as [A, B, ...] on the mesh; sequence ``s`` comes into micro-batch ``s % A``.

    On one process, and wherever the mesh lists the devices of one process after those of another, it comes to place
    ``s // A`` there. On other meshes the places are dealt to the processes (see ``sequences_of_process``).

    Args:
      num_sequences: how many the whole batch has; by default those given.
      first_sequence: which of them the first one given is. A process gives those of ``sequences_of_process``, or more.

    Raises:
      ValueError: an array is of no declared field, or has another dtype or shape than its field.
    """

    def put(name: str, x: np.ndarray) -> jax.Array:
        field = _check(name, x, fields)
        micro_batches = x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1)
        size = (len(x) if num_sequences is None else num_sequences) // accumulation
        given = _order(mesh, size) - first_sequence // accumulation

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return micro_batches[index[0], :, *index[2:]][:, given[index[1]]]

        return jax.make_array_from_callback((accumulation, size, *x.shape[1:]), field_sharding(field, mesh), read)

    return {name: put(name, np.asarray(x)) for name, x in batch.items()}


def _order(mesh: Mesh, size: int) -> np.ndarray:
    """Returns for each place of a micro-batch which of its sequences stands there."""
    dealt = _deal(mesh)
    order = np.empty((len(dealt), size // len(dealt)), np.int64)
    order[[shard for shard, _ in dealt]] = np.arange(size).reshape(order.shape)
    return order.reshape(-1)


def take_sequences(array: jax.Array, sequences: range, *, mesh: Mesh) -> np.ndarray:
    """Copies sequences of an array [A, B, T, ...] on the mesh to the host, as [sequences, T, ...]: undoes `put_batch`.

    Args:
      sequences: those that this process feeds, or some of them.
    """
    if num_shards("length", mesh) > 1:
        # Other processes may hold other tokens of the same sequences.
        array = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, spec((None, "batch"))))(array)
    accumulation, size = array.shape[:2]
    order, taken = _order(mesh, size), np.empty((len(sequences), *array.shape[2:]), array.dtype)
    parts = {shard.index[1].indices(size)[:2]: shard for shard in array.addressable_shards}
    for (first, stop), part in parts.items():
        values = np.asarray(part.data)
        for place, micro in itertools.product(range(first, stop), range(accumulation)):
            sequence = int(order[place]) * accumulation + micro
            if sequence in sequences:
                taken[sequence - sequences.start] = values[micro, place - first]
    return taken


def abstract_batch(
    *, sequences: int, tokens: int, accumulation: int, mesh: Mesh, fields: Fields = TOKEN_FIELDS
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes that ``put_batch`` makes, so that a step can be compiled before any data is read."""

    def shape(field: Field) -> jax.ShapeDtypeStruct:
        micro_batch = field.shape(sequences // accumulation, tokens)
        return jax.ShapeDtypeStruct((accumulation, *micro_batch), field.dtype, sharding=field_sharding(field, mesh))

    return {name: shape(field) for name, field in fields.items()}


def _check(name: str, x: np.ndarray, fields: Fields) -> Field:
    if name not in fields:
        raise ValueError(f"the batch holds {name!r}, which is not one of its fields {', '.join(fields)}; declare it.")
    field = fields[name]
    tokens = x.shape[field.axes.index(_TOKENS)] if _TOKENS in field.axes and x.ndim == len(field.axes) else 0
    wanted = field.shape(len(x), tokens)
    if x.shape != wanted or x.dtype != jnp.dtype(field.dtype):
        raise ValueError(
            f"{name!r} of the batch is {x.dtype}{list(x.shape)}, but its field has the dtype "
            f"{jnp.dtype(field.dtype)}, the axes {field.axes} and the sizes {field.sizes}; make both agree."
        )
    return field


def field_sharding(field: Field, mesh: Mesh) -> NamedSharding:
    """Returns how a field lies on the mesh, as [A, B, ...]."""
    return NamedSharding(mesh, spec((None, *field.axes)))
