"""The memory of an engine's slots: keys and values in pages, and DeltaNet states that take a window's tokens late.

A step of the engine shows every slot a window of tokens of which some may be rejected afterwards. Attention writes all
of their keys and values; the next window writes over the rejected ones. A DeltaNet state cannot take a token back, so
it stays as it was before the window, and the window's inputs are kept. The next step first applies those that were
accepted (``gated_delta_replay``).

Letters: ``G`` periods, ``B`` slots, ``T`` tokens of a window, ``M`` pages a slot may have, ``P`` pages, ``S`` tokens of
a page, ``N`` query or value heads, ``K`` key heads (attention) or key width (delta rule), ``H`` head width, ``V`` value
width, ``W`` inputs that the convolution looks back, ``I = W + T`` inputs that are kept, ``C`` conv channels, ``J =
2 K``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.config import LINEAR, TextConfig
from qwen35_jax.ops.attention.paged import paged_attention, write_pages
from qwen35_jax.ops.gated_delta import DeltaRule
from qwen35_jax.ops.gated_delta.replay import gated_delta_replay
from qwen35_jax.sharding import Axes, constrain, num_shards, over_mesh, shard_index
from qwen35_jax.state.delta import DeltaState
from qwen35_jax.state.protocol import LayerMemory

_PAGES = (None, "batch", "heads", None, None)
_STATES = (None, "batch", "heads", None, None)
_HEADS = (None, "batch", None, "heads", None)
_INPUTS = (None, "batch", None, None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedPlacement:
    """Where the tokens of one call go, for every layer alike but for ``layer``.

    Attributes:
      table: the page of each stretch of ``S`` positions of a slot; 0, which nobody owns, where it has none.
      lengths: tokens before this call.
      num_real: tokens of this call that are no padding; padding stands at the end.
      num_past: tokens of the window before that were accepted and that the DeltaNet states still lack.
      state_segment_ids: documents of the DeltaNet states: all slots hold one document, number 1.
      layer: index of the layer in its stack over periods.
      on_grid: whether ``lengths`` are multiples of the tokens of this call. Known when the program is compiled.
    """

    table: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    num_real: Int[Array, " B"]
    num_past: Int[Array, " B"]
    state_segment_ids: Int[Array, " B"]
    layer: Int[Array, ""]
    on_grid: bool = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedKeyValues:
    """Keys and values of the attention layers at one place of the period, in pages that slots share.

    ``pages[g, p, 2 h]`` are the keys and ``pages[g, p, 2 h + 1]`` the values of key head ``h`` in layer ``g``.
    """

    pages: Float[Array, "G P J S H"]

    @classmethod
    def empty(
        cls,
        config: TextConfig,
        num_pages: int,
        page_size: int,
        dtype: DTypeLike,
        *,
        num_layers: int | None = None,
        num_heads: int | None = None,
    ) -> "PagedKeyValues":
        """Makes ``num_pages`` pages for each of ``num_layers`` layers, by default one layer a period.

        Args:
          num_heads: key heads that a page holds, a multiple of the model's; by default as many.
        """
        layers = config.num_periods if num_layers is None else num_layers
        heads = config.num_key_value_heads if num_heads is None else num_heads
        return cls(jnp.zeros((layers, num_pages, 2 * heads, page_size, config.head_dim), dtype))

    def split(self) -> "PagedKeyValues":
        """Splits the pages over the devices of the mesh: each data shard has pages of its own."""
        return PagedKeyValues(constrain(self.pages, _PAGES))

    def copy_page(
        self, shard: Int[Array, ""] | int, source: Int[Array, ""] | int, target: Int[Array, ""] | int
    ) -> "PagedKeyValues":
        """Copies one page of a data shard to another of the same shard; 0 to 0 copies nothing that counts."""

        def local(pages, shard, source, target):
            mine = shard == shard_index("batch") if num_shards("batch") > 1 else True
            source, target = (jnp.where(mine, page, 0) for page in (source, target))
            return pages.at[:, target].set(pages[:, source])

        numbers = (jnp.asarray(x, jnp.int32) for x in (shard, source, target))
        return PagedKeyValues(over_mesh(local, self.pages, *numbers, in_axes=(_PAGES, (), (), ()), out_axes=_PAGES))

    def attend(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        segment_ids: Int[Array, "B T"],
        placement: PagedPlacement,
    ) -> tuple[Float[Array, "B T N H"], "PagedKeyValues"]:
        """See ``KeyValues.attend``. A slot holds one document, so ``segment_ids`` says nothing new."""
        where = placement.layer, placement.table, placement.lengths
        pages = write_pages(self.pages, k, v, *where, placement.num_real, on_grid=placement.on_grid)
        out = paged_attention(q, pages, *where)
        # Padding would see memory that nobody has written.
        is_real = jnp.arange(q.shape[1]) < placement.num_real[:, None]
        return jnp.where(is_real[..., None, None], out, 0), PagedKeyValues(pages)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotDelta:
    """States of the DeltaNet layers at one place of the period, and what they have not taken in yet.

    Attributes:
      recurrent: the state before the last window.
      inputs: inputs of the convolution: ``W`` before the last window, then those of the window.
      k, v, log_decay, beta: what the last window's tokens write into the state.
    """

    recurrent: Float32[Array, "G B N K V"]
    inputs: Float[Array, "G B I C"]
    k: Float[Array, "G B T N K"]
    v: Float[Array, "G B T N V"]
    log_decay: Float32[Array, "G B T N"]
    beta: Float32[Array, "G B T N"]

    @classmethod
    def empty(cls, config: TextConfig, slots: int, window: int, dtype: DTypeLike) -> "SlotDelta":
        """Makes the states of ``slots`` slots that are shown ``window`` tokens a step."""
        G, N = config.num_periods, config.linear_num_value_heads
        K, V = config.linear_key_head_dim, config.linear_value_head_dim
        kept = config.linear_conv_kernel_dim - 1 + window
        return cls(
            recurrent=jnp.zeros((G, slots, N, K, V), jnp.float32),
            inputs=jnp.zeros((G, slots, kept, config.conv_dim), dtype),
            k=jnp.zeros((G, slots, window, N, K), dtype),
            v=jnp.zeros((G, slots, window, N, V), dtype),
            log_decay=jnp.zeros((G, slots, window, N), jnp.float32),
            beta=jnp.zeros((G, slots, window, N), jnp.float32),
        )

    def split(self) -> "SlotDelta":
        """Splits slots and heads over the devices of the mesh."""
        by_head = {"recurrent": _STATES, "k": _HEADS, "v": _HEADS, "log_decay": _HEADS[:-1], "beta": _HEADS[:-1]}
        axes = by_head | {"inputs": _INPUTS}
        return SlotDelta(**{name: constrain(getattr(self, name), names) for name, names in axes.items()})

    def window(self, placement: PagedPlacement) -> Float[Array, "B W C"]:
        """See ``DeltaMemory.window``: the last inputs before this call, rejected ones left out."""
        inputs, most = self.inputs[placement.layer], self.k.shape[2]
        width = inputs.shape[1] - most
        # One choice for each count: a gather of rows takes a TPU many times as long.
        num_past, recent = placement.num_past[:, None, None], inputs[:, :width]
        for count in range(1, most + 1):
            recent = jnp.where(num_past == count, inputs[:, count : count + width], recent)
        return recent

    def recur(
        self,
        q: Float[Array, "B T N K"],
        k: Float[Array, "B T N K"],
        v: Float[Array, "B T N V"],
        log_decay: Float32[Array, "B T N"],
        beta: Float32[Array, "B T N"],
        *,
        projected: Float[Array, "B T C"],
        window: Float[Array, "B W C"],
        segment_ids: Int[Array, "B T"],
        placement: PagedPlacement,
        delta_rule: DeltaRule,
    ) -> tuple[Float[Array, "B T N V"], "SlotDelta"]:
        """See ``DeltaMemory.recur``. The returned states lack this call's tokens, which are kept beside them."""
        layer = placement.layer
        past = (self.k[layer], self.v[layer], self.log_decay[layer], self.beta[layer])
        out, recurrent = gated_delta_replay(q, k, v, log_decay, beta, self.recurrent, layer, past, placement.num_past)
        inputs = jnp.concatenate([self.window(placement), projected], axis=1)
        new = (inputs, k, v, log_decay, beta)
        old = (self.inputs, self.k, self.v, self.log_decay, self.beta)
        stacks = (stack.at[layer].set(x.astype(stack.dtype)) for stack, x in zip(old, new, strict=True))
        return out, SlotDelta(recurrent, *stacks)

    def take(self, slots: Int[Array, " R"], *, by_shard: bool = False) -> DeltaState:
        """Returns the states of some slots that have taken in all of their tokens.

        Args:
          by_shard: as in ``at_slots``.
        """
        width = self.inputs.shape[2] - self.k.shape[2]

        def local(places, inputs, recurrent):
            return tuple(stack.at[:, places].get(mode="clip") for stack in (inputs[:, :, :width], recurrent))

        axes = (_INPUTS, _STATES)
        args = (self.inputs, self.recurrent)
        return DeltaState(*at_slots(local, slots, *args, in_axes=axes, out_axes=axes, by_shard=by_shard))

    def put(self, slots: Int[Array, " R"], states: DeltaState, *, by_shard: bool = False) -> "SlotDelta":
        """Returns the memory with the states of some slots replaced; no token waits there. Slots below 0 are left.

        Args:
          by_shard: as in ``at_slots``.
        """

        def local(places, inputs, recurrent, new_inputs, new_recurrent):
            inputs = inputs.at[:, places, : new_inputs.shape[2]].set(new_inputs.astype(inputs.dtype), mode="drop")
            return inputs, recurrent.at[:, places].set(new_recurrent, mode="drop")

        axes, args = (_INPUTS, _STATES), (self.inputs, self.recurrent, states.inputs, states.recurrent)
        inputs, recurrent = at_slots(local, slots, *args, in_axes=axes + axes, out_axes=axes, by_shard=by_shard)
        return dataclasses.replace(self, inputs=inputs, recurrent=recurrent)


def at_slots(
    function: Callable, slots: Int[Array, " R"], *args: Array, in_axes: Sequence[Axes], out_axes: Any, by_shard: bool
) -> Any:
    """Calls ``function(places, *args)``, where a slot below 0, which is none, has the place behind the last.

    Args:
      slots: numbers of slots.
      args: arrays; the first one has an entry for each slot.
      by_shard: whether the slot of each row lies in the row's own data shard. Then each device calls the function with
        its part of all arguments and the places of its slots, and nothing is sent.
      in_axes, out_axes: logical axes of ``args`` and of what is returned; slots and rows lie along ``batch``.
    """
    by_shard = by_shard and num_shards("batch") > 1
    axis = in_axes[0].index("batch")

    def local(slots, *args):
        count = args[0].shape[axis]
        first = shard_index("batch") * count if by_shard else 0
        return function(jnp.where(slots < 0, count, slots - first), *args)

    if not by_shard:
        return local(slots, *args)
    return over_mesh(local, slots, *args, in_axes=(("batch",), *in_axes), out_axes=out_axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedState:
    """What a model remembers of the slots of one call; it takes the place of ``DecoderState``.

    Attributes:
      layers: one entry for each layer of the period: ``PagedKeyValues``, and ``SlotDelta`` for windows or
        ``DeltaState`` for tokens that all stay.
      table, lengths, num_past, on_grid: as in ``PagedPlacement``. Who calls the model keeps count of them.
      offset: position of a new token less the number of tokens before it: images and videos take fewer positions than
        tokens. None for 0.
    """

    layers: tuple[LayerMemory, ...]
    table: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    num_past: Int[Array, " B"]
    on_grid: bool = field(default=False, metadata={"static": True})
    offset: Int[Array, " B"] | None = None

    def continued(self, num_tokens: int) -> Int[Array, "B T"]:
        """Returns segment ids of tokens that are all real."""
        return jnp.ones((self.lengths.shape[0], num_tokens), jnp.int32)

    def positions(self, segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """Counts the positions of a call's tokens."""
        first = self.lengths if self.offset is None else self.lengths + self.offset
        return first[:, None] + jnp.arange(segment_ids.shape[1])

    def place(self, segment_ids: Int[Array, "B T"]) -> PagedPlacement:
        """Says where the tokens of a call go; ``segment_ids`` is 1 for tokens, then 0 for padding."""
        num_real = jnp.sum(segment_ids, axis=1, dtype=jnp.int32)
        layer = jnp.zeros((), jnp.int32)
        return PagedPlacement(
            self.table, self.lengths, num_real, self.num_past, jnp.ones_like(self.lengths), layer, self.on_grid
        )

    def advance(self, layers: tuple[LayerMemory, ...], *_: object) -> "PagedState":
        """Returns the memory after a call whose layers left ``layers``."""
        return dataclasses.replace(self, layers=layers)


def empty_layers(
    config: TextConfig, *, slots: int, window: int, num_pages: int, page_size: int, dtype: DTypeLike, num_heads: int
) -> tuple[SlotDelta | PagedKeyValues, ...]:
    """Makes the memory of an engine: one entry for each layer of the period; ``num_heads`` as in ``PagedKeyValues``."""
    return tuple(
        SlotDelta.empty(config, slots, window, dtype)
        if kind == LINEAR
        else PagedKeyValues.empty(config, num_pages, page_size, dtype, num_heads=num_heads)
        for kind in config.layer_types[: config.period]
    )
