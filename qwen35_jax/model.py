"""Qwen3.5 as one module: vision tower, embedding, decoder scanned by period, output head, and the MTP head.

Letters: ``G`` periods, ``B`` batch, ``T`` tokens of this call, ``D`` model width, ``V`` vocabulary, ``L`` layers that
take features of their own.

Source: ``Qwen3_5ForConditionalGeneration`` in transformers; ``Qwen3_5MTP`` in vLLM for the MTP head.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qwen35_jax.config import ModelConfig
from qwen35_jax.eager import Inputs, eager
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
from qwen35_jax.vision.patches import Patches
from qwen35_jax.vision.placing import Embedded, place_features
from qwen35_jax.vision.tower import VisionFeatures, VisionTower

# Folded into the dropout keys: the trunk's, the tower's, and from the last number on those of the MTP steps.
_TRUNK, _TOWER, _MTP = 0, 1, 1_000
_TOKENS = ("batch", "length", "features")


class Qwen35(nnx.Module):
    """The model. ``layers[i]`` holds, stacked along its first axis, layer ``i`` of every period.

    Every method takes the same three inputs:

    * ``input_ids`` [B, T], below the vocabulary size;
    * ``segment_ids`` [B, T]: 0 for padding, 1, 2, ... for the documents of a sequence, each one contiguous run, in
      ascending order. Documents do not see each other in any layer. Default: one document a sequence;
    * ``position_ids`` [B, T] or [3, B, T] for time, height and width. Default: counted within each document.

    ``forward`` and ``mtp_forward`` are for code that is compiled: a train step, an engine. With images or videos it
    calls ``vision_features`` and ``embed`` first, and hands on what they return. ``hidden_states``, ``logits`` and
    ``mtp_logits`` are for everybody else. They take ``pixels`` [P, C] and ``grids`` [n, 3] as the processor returns
    them, those of all sequences in reading order. Positions are then by default those of ``vision.mrope``. Without
    pixels they refuse ids of the host among which an image or a video begins.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.bfloat16,
        param_dtype: DTypeLike | None = None,
        delta_rule: DeltaRule = "auto",
        vision: bool = True,
        rngs: nnx.Rngs,
    ):
        """Makes a model with random weights as the reference initialises them.

        Args:
          dtype: what is computed in; norms, gates, recurrent states and softmax are float32 always.
          param_dtype: what weights are stored in, by default ``dtype``; ``A_log`` and the gated norms are float32.
          delta_rule: how DeltaNet layers compute their recurrence (see ``ops/gated_delta/README.md``).
          vision: whether to make the vision tower that the configuration may have; text alone does not need it.

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
        tower = None
        if vision and config.vision is not None:
            make = Parameters(rngs, make.dtype, config.vision.initializer_range)
            tower = VisionTower(config.vision, dtype=self.dtype, make=make)
        self.vision = nnx.data(tower)

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "*axes B T"] | None = None,
        state: DecoderState | PagedState | None = None,
        *,
        embedded: Embedded | None = None,
        remat: Remat = "none",
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs the decoder over whole sequences or, with a state, over the next T tokens of its sequences.

        With a state all tokens belong by default to the document that it ended in. The caller keeps
        ``state.lengths + T`` within ``state.capacity``.

        Args:
          state: what the layers remember; None starts anew and remembers nothing.
          embedded: what to read in place of the tokens' embeddings, as ``embed`` returns it.
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
            (x, states), (weights, key, index, deep) = carry, period
            x, here, left = block_input(x), tokens.at_layer(index), []
            for i, layer in enumerate(nnx.merge(graphdef, weights)):
                layer_key = None if key is None else jax.random.fold_in(key, i)
                x, layer_state = layer(x, here, None if states is None else states[i], layer_key)
                left.append(layer_state)
                x = x if deep is None else x + deep[i]
            return (x, None if states is None else tuple(left)), None

        embedded = self._look_up(input_ids) if embedded is None else embedded
        carry = embedded.values, None if state is None else state.layers
        periods = weights, keys, None if state is None else jnp.arange(num_periods)
        run = rematerialized(run_period, remat)
        start = 0
        if embedded.deep is not None:
            deep = _by_period(embedded.deep, len(self.layers))
            start = len(deep)
            first = jax.tree.map(lambda stack: stack[:start], periods)
            carry, _ = jax.lax.scan(run, carry, (*first, deep), length=start)
            periods = jax.tree.map(lambda stack: stack[start:], periods)
        (x, states), _ = jax.lax.scan(run, carry, (*periods, None), length=num_periods - start)
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
        embedded: Embedded | None = None,
        num_steps: int = 1,
        remat: Remat = "none",
        dropout_key: PRNGKeyArray | None = None,
    ) -> list[Float[Array, "B T D"]]:
        """Runs the MTP head ``num_steps`` times, each on the output of the one before.

        Args:
          hidden: what ``forward`` returned for these tokens.
          embedded: what ``forward`` was given.

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
            if embedded is None:
                embedding = self._look_up(shift_left(input_ids, k)).values
            else:
                embedding = shift_left(embedded.values, k)
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
        *,
        position_ids: Int[Array, "*axes B T"] | None = None,
        embedded: Embedded | None = None,
    ) -> tuple[Float[Array, "B T D"], PagedState]:
        """Runs the MTP head once over the next T tokens of an engine's slots.

        Args:
          hidden: what ``forward`` returned for these tokens, or this method's own output for the token before.
          next_ids: the token after each.
          segment_ids: 1 for tokens, then 0 for padding; None where all are real.
          state: the head's keys and values, as its one layer.
          position_ids: of the tokens that ``hidden`` belongs to.
          embedded: what to read in place of the embeddings of ``next_ids``.

        Returns:
          The vectors that, through the shared head, predict the token after ``next_ids``, and the state after.
        """
        assert self.mtp is not None, "the engine checks that the model has an MTP head"
        tokens, *_ = self._describe(next_ids, segment_ids, position_ids, state)
        (memory,) = state.layers
        assert isinstance(memory, PagedKeyValues)
        embedded = self._look_up(next_ids) if embedded is None else embedded
        out, after = self.mtp(hidden, embedded.values, tokens, memory)
        assert after is not None
        return out, dataclasses.replace(state, layers=(after,))

    @eager
    def hidden_states(self, inputs: Inputs) -> Float[Array, "B T D"]:
        """Returns the decoder's output after the final norm, in the compute dtype."""
        return self._run(inputs)[0]

    @eager
    def logits(self, inputs: Inputs) -> Float[Array, "B T V"]:
        """Returns float32 logits; position ``i`` predicts token ``i + 1``. Training never holds this array."""
        return self.head_logits(self._run(inputs)[0])

    @eager
    def mtp_logits(self, inputs: Inputs) -> Float[Array, "B T V"]:
        """Returns float32 logits of the MTP head; position ``i`` predicts token ``i + 2``.

        The last two positions of a document are undefined.
        """
        hidden, embedded = self._run(inputs)
        (ahead,) = self.mtp_forward(hidden, *inputs[:3], embedded=embedded)
        return self.head_logits(ahead)

    def _run(self, inputs: Inputs) -> tuple[Float[Array, "B T D"], Embedded | None]:
        """Returns the output after the final norm, and what took the place of embeddings, if there are patches."""
        embedded = None
        if inputs.patches is not None:
            embedded = self.embed(inputs.input_ids, self.vision_features(inputs.patches))
        return self.forward(*inputs[:3], embedded=embedded)[0], embedded

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

    def vision_features(
        self, patches: Patches, *, remat: Remat = "none", dropout_key: PRNGKeyArray | None = None
    ) -> VisionFeatures:
        """Runs the tower over images and videos.

        Args:
          remat: what the backward pass keeps of each block of the tower; it computes the rest again.
          dropout_key: turns adapter dropout on.

        Raises:
          ValueError: the model has no tower.
        """
        if self.vision is None:
            raise ValueError("this model has no vision tower: load a checkpoint that has one, with vision=True.")
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, _TOWER)
        return self.vision(patches, remat=remat, dropout_key=key)

    def embed(self, input_ids: Int[Array, "B T"], features: VisionFeatures | None = None) -> Embedded:
        """Looks tokens up in the compute dtype, and puts the tower's vectors in the place of image and video tokens.

        Args:
          features: of as many rows as there are sequences, or a divisor of them (see ``Patches``).
        """
        embedded = self._look_up(input_ids)
        if features is None:
            return embedded
        is_vision = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        placed = place_features(embedded.values, is_vision, features)
        return placed._replace(values=constrain(placed.values, _TOKENS))

    def _look_up(self, input_ids: Int[Array, "B T"]) -> Embedded:
        return Embedded(constrain(self.embed_tokens(input_ids, dtype=self.dtype), _TOKENS))

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


def _by_period(deep: Float[Array, "L B T D"], period: int) -> Float[Array, "G period B T D"]:
    """Sorts what is added after the first layers into periods; the last one is filled up with zeros."""
    filled = jnp.pad(deep, ((0, -len(deep) % period), (0, 0), (0, 0), (0, 0)))
    return filled.reshape(-1, period, *deep.shape[1:])
