"""A live teacher: a frozen model whose signal for a batch is computed by a program of its own.

The result is placed like any array of a batch, so the step of the student does not know where it comes from.

Letters: A accumulation steps, B sequences of a micro-batch, T tokens, E width of the teacher, V vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.stages import Compiled, Wrapped
from jaxtyping import Array, Float

from qwen35_jax.model import Qwen35
from qwen35_jax.ops.linear_top_k import linear_top_k
from train.batch import Batch, field_sharding
from train.objectives.inputs import inputs_in, model_inputs
from train.signals.signal import IDS, LOG_PROBS, STATES, TAIL, SignalSettings, signal_fields


class LiveTeacher:
    """Computes the signal of a model for one batch after another. It changes nothing of the model."""

    def __init__(self, model: Qwen35, settings: SignalSettings, mesh: Mesh, *, chunk_tokens: int = 256):
        """Takes a model whose arrays lie on the mesh; they are not copied.

        Args:
          chunk_tokens: positions of each sequence whose logits exist at once, for the signal ``topk``.

        Raises:
          ValueError: the model does not fit the settings.
        """
        check_model(model, settings)
        self._head, (graphdef, self._weights) = model.head_weight(), nnx.split(without_mtp(model))
        self._mesh = mesh
        self._teach: Wrapped | Compiled = make_teach(graphdef, settings, mesh, chunk_tokens=chunk_tokens)

    @property
    def head(self) -> Float[Array, "V E"]:
        """The weight of the output head."""
        return self._head

    def compile(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Compiles ahead of the first batch.

        Args:
          batch: shapes and placement of every batch to come.
        """
        assert isinstance(self._teach, Wrapped), "it is compiled once"
        with jax.set_mesh(self._mesh):
            self._teach = self._teach.lower(self._weights, inputs_in(batch)).compile()

    def teach(self, batch: Batch) -> dict[str, Array]:
        """Returns the arrays of the signal, [A, B, T, ...], for a batch of ``put_batch``."""
        with jax.set_mesh(self._mesh):
            return self._teach(self._weights, inputs_in(batch))


def without_mtp(model: Qwen35) -> Qwen35:
    """Returns a model of the same arrays without its MTP block, which a teacher does not need; none is copied."""
    teacher = nnx.merge(*nnx.split(model))
    teacher.mtp = nnx.data(None)
    return teacher


def check_model(model: Qwen35, settings: SignalSettings) -> None:
    """Checks that a model, of arrays or of shapes, can give the signal of the settings.

    Raises:
      ValueError: it cannot.
    """
    text = model.config.text
    if settings.signal == "topk" and settings.k > text.vocab_size:
        raise ValueError(f"teacher.k={settings.k} is more than the {text.vocab_size} tokens of the teacher; lower it.")
    if settings.signal == "hidden" and settings.width != text.hidden_size:
        raise ValueError(
            f"teacher.width={settings.width}, but the teacher's hidden states have the width {text.hidden_size}."
        )
    if model.dtype != jnp.dtype(settings.dtype):
        raise ValueError(f"the teacher computes in {model.dtype}, but teacher.dtype={settings.dtype}; load it so.")


def make_teach(graphdef: nnx.GraphDef, settings: SignalSettings, mesh: Mesh, *, chunk_tokens: int = 256) -> Wrapped:
    """Returns ``teach(weights, inputs) -> signal``, compiled at its first call or ahead of it, under the mesh.

    ``weights`` is the state of the model whose definition is given; ``inputs`` are those of ``inputs_in``, [A, B, ...]
    each. Micro-batches are computed one after the other.
    """

    def teach_micro_batch(weights: nnx.State, inputs: Batch) -> dict[str, Array]:
        # copy=True: this runs inside a loop over micro-batches, at another trace level.
        model = nnx.merge(graphdef, weights, copy=True)
        found = model_inputs(model, inputs)
        hidden, _ = model.forward(*found.tokens, embedded=found.embed(model))
        if settings.signal == "hidden":
            return {STATES: hidden}
        top = linear_top_k(hidden, model.head_weight(), settings.k, chunk_tokens=chunk_tokens)
        return {IDS: top.ids, LOG_PROBS: top.log_probs.astype(jnp.float16), TAIL: top.tail}

    def teach(weights: nnx.State, inputs: Batch) -> dict[str, Array]:
        return jax.lax.map(lambda each: teach_micro_batch(weights, each), inputs)

    shardings = {name: field_sharding(field, mesh) for name, field in signal_fields(settings).items()}
    return jax.jit(teach, out_shardings=shardings)
