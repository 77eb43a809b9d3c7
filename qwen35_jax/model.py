"""Qwen3.5 as one module: embedding, decoder scanned by period, output head, and the MTP head.

Letters: ``G`` periods, ``B`` batch, ``T`` tokens of this call, ``D`` model width, ``V`` vocabulary.

Source: ``Qwen3_5ForConditionalGeneration`` in transformers; ``Qwen3_5MTP`` in vLLM for the MTP head.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from qwen35_jax.config import ModelConfig
from qwen35_jax.layers.decoder import DecoderLayer
from qwen35_jax.layers.embedding import Embedding, OutputHead
from qwen35_jax.layers.mtp import MTPHead
from qwen35_jax.layers.norms import RMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import Remat, block_input, rematerialized
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.gated_delta import DELTA_RULES, DeltaRule
from qwen35_jax.ops.positions import count_positions, shift_left
from qwen35_jax.ops.rotary import rotary_angles
from qwen35_jax.sharding import constrain
from qwen35_jax.state import DecoderState, PagedKeyValues, PagedState

# Folded into the dropout keys: the trunk's, and from this number on those of the MTP steps.
_TRUNK, _MTP = 0, 1_000


@runtime_checkable
class _EagerMethod(Protocol):
    """A method of the model as its users call it."""

    def __call__(
        self, input_ids: ArrayLike, segment_ids: ArrayLike | None = None, position_ids: ArrayLike | None = None
    ) -> Array: ...


def _eager(method: Callable[..., Array]) -> _EagerMethod:
    """Lets a method be called with lists and arrays of any kind: checks their shapes and runs it compiled.

    A program is compiled once for each structure of model and arguments. Code that is compiled itself calls
    ``forward`` and ``mtp_forward``.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef, weights, inputs):
        return method(nnx.merge(graphdef, weights), *inputs)

    @functools.wraps(method)
    def call(model, input_ids, segment_ids=None, position_ids=None):
        return run(*nnx.split(model), _checked(input_ids, segment_ids, position_ids))

    return cast(_EagerMethod, call)


def _checked(
    input_ids: ArrayLike, segment_ids: ArrayLike | None, position_ids: ArrayLike | None
) -> tuple[Array, Array | None, Array | None]:
    ids = jnp.asarray(input_ids)
    segments = None if segment_ids is None else jnp.asarray(segment_ids)
    positions = None if position_ids is None else jnp.asarray(position_ids)
    if ids.ndim != 2:
        raise ValueError(f"input_ids has shape {ids.shape}; expected (batch, tokens).")
    if segments is not None and segments.shape != ids.shape:
        raise ValueError(f"segment_ids has shape {segments.shape}; expected that of input_ids, {ids.shape}.")
    if positions is not None and positions.shape not in (ids.shape, (3, *ids.shape)):
        raise ValueError(f"position_ids has shape {positions.shape}; expected {ids.shape} or {(3, *ids.shape)}.")
    return ids, segments, positions


class Qwen35(nnx.Module):
    """The text model. ``layers[i]`` holds, stacked along its first axis, layer ``i`` of every period.

    Every method takes the same three inputs:

    * ``input_ids`` [B, T], below the vocabulary size;
    * ``segment_ids`` [B, T]: 0 for padding, 1, 2, ... for the documents of a sequence, each one contiguous run, in
      ascending order. Documents do not see each other in any layer. Default: one document a sequence;
    * ``position_ids`` [B, T] or [3, B, T] for time, height and width. Default: counted within each document.

    ``forward`` and ``mtp_forward`` are for code that is compiled: a train step, an engine. ``hidden_states``,
    ``logits`` and ``mtp_logits`` are for everybody else.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.bfloat16,
        param_dtype: DTypeLike | None = None,
        delta_rule: DeltaRule = "auto",
        rngs: nnx.Rngs,
    ):
        """Makes a model with random weights as the reference initialises them.

        Args:
          dtype: what is computed in; norms, gates, recurrent states and softmax are float32 always.
          param_dtype: what weights are stored in, by default ``dtype``; ``A_log`` and the gated norms are float32.
          delta_rule: how DeltaNet layers compute their recurrence (see ``ops/gated_delta/README.md``).

        Raises:
          ValueError: the configuration is of a mixture-of-experts size, whose layers do not exist yet, or
            ``delta_rule`` is unknown.
        """
        if config.text.moe is not None:
            raise ValueError(
                f"{config.architecture}: the mixture-of-experts MLP is not implemented yet, only its configuration "
                "is read; use a dense size (0.8b, 2b, 4b, 9b, 27b)."
            )
        if delta_rule not in DELTA_RULES:
            raise ValueError(f"delta_rule={delta_rule!r} is unknown; choose one of {', '.join(DELTA_RULES)}.")
        text = config.text
        self.config, self.dtype = config, jnp.dtype(dtype)
        # The LoraConfig of the adapters, which lora.add and load_adapter set.
        self.lora_config: Any = None
        make = Parameters(rngs, param_dtype or dtype, text.initializer_range)
        stacked = Parameters(rngs, make.dtype, text.initializer_range, stack=text.num_periods)
        self.embed_tokens = Embedding(text.vocab_size, text.hidden_size, make=make)
        self.layers = nnx.List(
            [DecoderLayer(text, kind, make=stacked, delta_rule=delta_rule) for kind in text.layer_types[: text.period]]
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, make=make)
        self.lm_head = nnx.data(
            None if config.tie_word_embeddings else OutputHead(text.vocab_size, text.hidden_size, make=make)
        )
        self.mtp = nnx.data(MTPHead(text, make=make) if text.mtp.num_hidden_layers else None)

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "*axes B T"] | None = None,
        state: DecoderState | PagedState | None = None,
        *,
        remat: Remat = "none",
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs the decoder over whole sequences or, with a state, over the next T tokens of its sequences.

        With a state all tokens belong by default to the document that it ended in. The caller keeps
        ``state.lengths + T`` within ``state.capacity``.

        Args:
          state: what the layers remember; None starts anew and remembers nothing.
          remat: what the backward pass keeps of each period of layers; it computes the rest again.
          dropout_key: turns adapter dropout on.

        Returns:
          The output after the final norm in the compute dtype, and the state after these tokens (None without one).
        """
        tokens, segment_ids, position_ids = self._describe(input_ids, segment_ids, position_ids, state)
        num_periods = self.config.text.num_periods
        graphdef, weights = nnx.split(self.layers)
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(jax.random.fold_in(dropout_key, _TRUNK), num_periods)

        def run_period(carry, period):
            (x, states), (weights, key, index) = carry, period
            x, here, left = block_input(x), tokens.at_layer(index), []
            for i, layer in enumerate(nnx.merge(graphdef, weights)):
                layer_key = None if key is None else jax.random.fold_in(key, i)
                x, layer_state = layer(x, here, None if states is None else states[i], layer_key)
                left.append(layer_state)
            return (x, None if states is None else tuple(left)), None

        carry = self.embed(input_ids), None if state is None else state.layers
        periods = weights, keys, None if state is None else jnp.arange(num_periods)
        (x, states), _ = jax.lax.scan(rematerialized(run_period, remat), carry, periods, length=num_periods)
        if state is not None:
            assert states is not None and tokens.placement is not None
            state = cast(Any, state).advance(states, segment_ids, position_ids, tokens.placement)
        return self.norm(x), state

    def mtp_forward(
        self,
        hidden: Float[Array, "B T D"],
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "*axes B T"] | None = None,
        *,
        num_steps: int = 1,
        remat: Remat = "none",
        dropout_key: PRNGKeyArray | None = None,
    ) -> list[Float[Array, "B T D"]]:
        """Runs the MTP head ``num_steps`` times, each on the output of the one before.

        Args:
          hidden: what ``forward`` returned for these tokens.

        Returns:
          For each step ``k`` from 1 the vectors that, through the shared head, predict token ``i + k + 1`` at
          position ``i``. The last ``k + 1`` positions of a document have nothing to predict and are undefined.

        Raises:
          ValueError: the model has no MTP head.
        """
        if self.mtp is None:
            raise ValueError("this model has no MTP head: its checkpoint held no mtp.* tensors. "
                             "Load one that has them, or turn the MTP loss off.")  # fmt: skip
        tokens, *_ = self._describe(input_ids, segment_ids, position_ids)

        def step(hidden, k):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, _MTP + k)
            embedding = self.embed(shift_left(input_ids, k))
            return self.mtp(block_input(hidden), embedding, tokens, dropout_key=key)[0]

        outputs = []
        for k in range(1, num_steps + 1):
            hidden = rematerialized(functools.partial(step, k=k), remat)(hidden)
            outputs.append(hidden)
        return outputs

    def draft_forward(
        self,
        hidden: Float[Array, "B T D"],
        next_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None,
        state: PagedState,
    ) -> tuple[Float[Array, "B T D"], PagedState]:
        """Runs the MTP head once over the next T tokens of an engine's slots.

        Args:
          hidden: what ``forward`` returned for these tokens, or this method's own output for the token before.
          next_ids: the token after each.
          segment_ids: 1 for tokens, then 0 for padding; None where all are real.
          state: the head's keys and values, as its one layer.

        Returns:
          The vectors that, through the shared head, predict the token after ``next_ids``, and the state after.
        """
        assert self.mtp is not None, "the engine checks that the model has an MTP head"
        tokens, *_ = self._describe(next_ids, segment_ids, None, state)
        (memory,) = state.layers
        assert isinstance(memory, PagedKeyValues)
        out, after = self.mtp(hidden, self.embed(next_ids), tokens, memory)
        assert after is not None
        return out, dataclasses.replace(state, layers=(after,))

    @_eager
    def hidden_states(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "*axes B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the decoder's output after the final norm, in the compute dtype."""
        return self.forward(input_ids, segment_ids, position_ids)[0]

    @_eager
    def logits(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "*axes B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits; position ``i`` predicts token ``i + 1``. Training never holds this array."""
        return self.head_logits(self.forward(input_ids, segment_ids, position_ids)[0])

    @_eager
    def mtp_logits(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "*axes B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits of the MTP head; position ``i`` predicts token ``i + 2``.

        The last two positions of a document are undefined.
        """
        hidden, _ = self.forward(input_ids, segment_ids, position_ids)
        (ahead,) = self.mtp_forward(hidden, input_ids, segment_ids, position_ids)
        return self.head_logits(ahead)

    def head_logits(
        self, hidden: Float[Array, "*L D"], head: Float[Array, "V D"] | None = None
    ) -> Float[Array, "*L V"]:
        """Returns float32 logits of the output head for the output of ``forward`` or ``mtp_forward``.

        Args:
          head: rows of its weight, for the logits of some tokens only.
        """
        head = (self.head_weight() if head is None else head).astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, head, preferred_element_type=jnp.float32)

    def head_weight(self) -> Float[Array, "V D"]:
        """Returns the weight of the output head, which a tied model shares with its embedding."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight[...]

    def embed(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks tokens up in the compute dtype."""
        return constrain(self.embed_tokens(input_ids, dtype=self.dtype), ("batch", "length", "features"))

    def _describe(self, input_ids, segment_ids, position_ids, state: DecoderState | PagedState | None = None):
        """Returns what the layers must know of the tokens, and segment and position ids with their defaults."""
        if state is not None and segment_ids is None:
            segment_ids = state.continued(input_ids.shape[1])
        if position_ids is None:
            if state is not None:
                position_ids = state.positions(segment_ids)
            elif segment_ids is None:
                position_ids = jnp.arange(input_ids.shape[1])[None]
            else:
                position_ids = count_positions(segment_ids)
        rope = self.config.text.rope
        cos, sin = rotary_angles(position_ids, theta=float(rope.rope_theta), sections=rope.mrope_section)
        placement = None if state is None else state.place(segment_ids)
        return Tokens(cos, sin, segment_ids, placement), segment_ids, position_ids
