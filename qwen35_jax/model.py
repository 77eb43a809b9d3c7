"""Qwen3.5 as one module: embedding, decoder scanned by period, output head, and the MTP head.

Letters: ``G`` periods, ``B`` batch, ``T`` tokens of this call, ``D`` model width, ``V`` vocabulary.

Source: ``Qwen3_5ForConditionalGeneration`` in transformers; ``Qwen3_5MTP`` in vLLM for the MTP head.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qwen35_jax.cache import Cache
from qwen35_jax.config import ModelConfig
from qwen35_jax.layers.decoder import DecoderLayer
from qwen35_jax.layers.embedding import Embedding, OutputHead
from qwen35_jax.layers.mtp import MTPHead
from qwen35_jax.layers.norms import RMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import Remat, block_input, rematerialized
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.positions import count_positions, shift_left
from qwen35_jax.ops.rotary import rotary_angles
from qwen35_jax.sharding import constrain

# Folded into the dropout key of the MTP head, beside the indices of the layers of a period.
_MTP_DROPOUT = 1_000


class Qwen35(nnx.Module):
    """The text model. ``layers[i]`` holds, stacked along its first axis, layer ``i`` of every period.

    Every method takes the same three inputs:

    * ``input_ids`` (B, T), below the vocabulary size;
    * ``segment_ids`` (B, T): 0 for padding, 1, 2, ... for the documents of a row, each one contiguous run, in
      ascending order. Documents do not see each other in any layer. Default: one document a row;
    * ``position_ids`` (B, T) or (3, B, T) for time, height and width. Default: counted within each document.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: DTypeLike = jnp.bfloat16, param_dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        """Makes a model with random weights as the reference initialises them.

        Args:
          dtype: what is computed in; norms, gates, recurrent states and softmax are float32 always.
          param_dtype: what weights are stored in, by default ``dtype``; ``A_log`` and the gated norms are float32.

        Raises:
          ValueError: the configuration is of a mixture-of-experts size, whose layers do not exist yet.
        """
        if config.text.moe is not None:
            raise ValueError(
                f"{config.architecture}: the mixture-of-experts MLP is not implemented yet, only its configuration "
                "is read; use a dense size (0.8b, 2b, 4b, 9b, 27b)."
            )
        text = config.text
        self.config, self.dtype = config, jnp.dtype(dtype)
        make = Parameters(rngs, param_dtype or dtype, text.initializer_range)
        stacked = Parameters(rngs, make.dtype, text.initializer_range, stack=text.num_periods)
        self.embed_tokens = Embedding(text.vocab_size, text.hidden_size, make=make)
        self.layers = nnx.List([DecoderLayer(text, kind, make=stacked) for kind in text.layer_types[: text.period]])
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, make=make)
        self.lm_head = nnx.data(
            None if config.tie_word_embeddings else OutputHead(text.vocab_size, text.hidden_size, make=make)
        )
        self.mtp = nnx.data(MTPHead(text, make=make) if text.mtp.num_hidden_layers else None)

    def hidden_states(
        self,
        input_ids: ArrayLike,
        segment_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        *,
        remat: Remat = "none",
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the decoder's output after the final norm, in the compute dtype.

        Args:
          remat: what the backward pass keeps of each period of layers; it computes the rest again.
          dropout_key: turns adapter dropout on.
        """
        return _compiled(_hidden_states, remat)(self, _inputs(input_ids, segment_ids, position_ids), dropout_key)

    def logits(
        self, input_ids: ArrayLike, segment_ids: ArrayLike | None = None, position_ids: ArrayLike | None = None
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits; position ``i`` predicts token ``i + 1``. Training never holds this array."""
        return _compiled(_logits)(self, _inputs(input_ids, segment_ids, position_ids))

    def mtp_hidden_states(
        self,
        hidden: Float[Array, "B T D"],
        input_ids: ArrayLike,
        segment_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        *,
        num_steps: int = 1,
        remat: Remat = "none",
        dropout_key: PRNGKeyArray | None = None,
    ) -> list[Float[Array, "B T D"]]:
        """Runs the MTP head ``num_steps`` times, each on the output of the one before.

        Returns:
          For each step ``k`` from 1 the vectors that, through the shared head, predict token ``i + k + 1`` at
          position ``i``. The last ``k + 1`` positions of a document have nothing to predict and are undefined.

        Raises:
          ValueError: the model has no MTP head.
        """
        if self.mtp is None:
            raise ValueError("this model has no MTP head: its checkpoint held no mtp.* tensors. "
                             "Load one that has them, or turn the MTP loss off.")  # fmt: skip
        inputs = _inputs(input_ids, segment_ids, position_ids)
        return _compiled(_mtp_hidden_states, num_steps, remat)(self, hidden, inputs, dropout_key)

    def mtp_logits(
        self, input_ids: ArrayLike, segment_ids: ArrayLike | None = None, position_ids: ArrayLike | None = None
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits of the MTP head; position ``i`` predicts token ``i + 2``.

        The last two positions of a document are undefined.
        """
        hidden = self.hidden_states(input_ids, segment_ids, position_ids)
        (ahead,) = self.mtp_hidden_states(hidden, input_ids, segment_ids, position_ids)
        return _compiled(_head_logits)(self, ahead)

    def forward(
        self,
        input_ids: ArrayLike,
        cache: Cache,
        segment_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Continues the rows of a cache by T tokens: a prompt, a part of one, or a single step of decoding.

        By default all tokens belong to the document that the cache ended in. Rows of unequal length are padded on
        the left. The caller keeps ``cache.length + T`` within ``cache.capacity``.

        Returns:
          The hidden states of these tokens, and the cache after them.
        """
        return _compiled(_forward)(self, _inputs(input_ids, segment_ids, position_ids), cache)

    def head_weight(self) -> Float[Array, "V D"]:
        """Returns the weight of the output head, which a tied model shares with its embedding."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight[...]

    def embed(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks tokens up in the compute dtype."""
        return constrain(self.embed_tokens(input_ids, dtype=self.dtype), ("batch", "length", "features"))


def _inputs(input_ids, segment_ids, position_ids) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Checks the shapes of the three inputs and turns them into arrays."""
    ids, segments, positions = (None if x is None else jnp.asarray(x) for x in (input_ids, segment_ids, position_ids))
    if ids.ndim != 2:
        raise ValueError(f"input_ids has shape {ids.shape}; expected (batch, tokens).")
    if segments is not None and segments.shape != ids.shape:
        raise ValueError(f"segment_ids has shape {segments.shape}; expected that of input_ids, {ids.shape}.")
    if positions is not None and positions.shape not in (ids.shape, (3, *ids.shape)):
        raise ValueError(f"position_ids has shape {positions.shape}; expected {ids.shape} or {(3, *ids.shape)}.")
    return ids, segments, positions


@functools.cache
def _compiled(function: Callable, *static) -> Callable:
    """Compiles ``function(model, *arguments, *static)`` once for each structure of model and arguments."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef, state, arguments):
        return function(nnx.merge(graphdef, state), *arguments, *static)

    def call(model: Qwen35, *arguments):
        return run(*nnx.split(model), arguments)

    return call


def _tokens(model: Qwen35, ids, segments, positions) -> Tokens:
    if positions is None:
        positions = jnp.arange(ids.shape[1])[None] if segments is None else count_positions(segments)
    return Tokens(*_angles(model, positions), segment_ids=segments)


def _angles(model: Qwen35, positions):
    rope = model.config.text.rope
    return rotary_angles(positions, theta=float(rope.rope_theta), sections=rope.mrope_section)


def _decode(model: Qwen35, x, tokens: Tokens, cache_layers=None, *, remat: Remat = "none"):
    """Scans the periods; returns the normed output and what each layer leaves for the cache, stacked."""
    graphdef, stacked = nnx.split(model.layers)
    num_periods = model.config.text.num_periods
    keys = None if tokens.dropout_key is None else jax.random.split(tokens.dropout_key, num_periods)

    def run_period(x, row):
        state, caches, key = row
        x, left = block_input(x), []
        for i, layer in enumerate(nnx.merge(graphdef, state)):
            x, new = layer(x, tokens.for_layer(key, i), None if caches is None else caches[i])
            left.append(new)
        return x, tuple(left)

    x, left = jax.lax.scan(rematerialized(run_period, remat), x, (stacked, cache_layers, keys), length=num_periods)
    return model.norm(x), left


def _hidden_states(model: Qwen35, inputs, dropout_key=None, remat: Remat = "none"):
    tokens = _tokens(model, *inputs).for_layer(dropout_key, 0)
    return _decode(model, model.embed(inputs[0]), tokens, remat=remat)[0]


def _head_logits(model: Qwen35, hidden):
    head = model.head_weight().astype(hidden.dtype)
    return jnp.einsum("BTD,VD->BTV", hidden, head, preferred_element_type=jnp.float32)


def _logits(model: Qwen35, inputs):
    return _head_logits(model, _hidden_states(model, inputs))


def _mtp_hidden_states(model: Qwen35, hidden, inputs, dropout_key, num_steps: int, remat: Remat):
    tokens = _tokens(model, *inputs)

    def step(hidden, k):
        head_tokens = tokens.for_layer(dropout_key, _MTP_DROPOUT + k)
        return model.mtp(block_input(hidden), model.embed(shift_left(inputs[0], k)), head_tokens)

    outputs = []
    for k in range(1, num_steps + 1):
        hidden = rematerialized(functools.partial(step, k=k), remat)(hidden)
        outputs.append(hidden)
    return outputs


def _forward(model: Qwen35, inputs, cache: Cache):
    ids, segments, positions = inputs
    if segments is None:
        segments = jnp.broadcast_to(jnp.maximum(cache.last_segment_ids, 1)[:, None], ids.shape)
    if positions is None:
        positions = count_positions(segments, cache.last_segment_ids, cache.next_position)
    cos, sin = _angles(model, positions)
    slots = jax.lax.dynamic_update_slice(cache.segment_ids, segments.astype(jnp.int32), (0, cache.length))
    tokens = Tokens(
        cos, sin, segment_ids=segments, key_segment_ids=slots, state_segment_ids=cache.last_segment_ids,
        length=cache.length,
    )  # fmt: skip
    hidden, left = _decode(model, model.embed(ids), tokens, cache.layers)
    return hidden, cache.advance(left, segments, slots, positions)
