"""What a distillation says of its first batch: a wrong teacher, a wrong shift or a damaged signal shows here.

The cross-entropy of a teacher that reads the documents well is a few nats; of one that is shifted by a token it is as
large as that of random guesses, the logarithm of the vocabulary. The divergence of the student from itself is zero.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import SupportsFloat

import jax
import jax.numpy as jnp
from flax import nnx

from train.batch import Batch, HostBatch
from train.config import Layout
from train.objectives.divergence import divergence_from
from train.objectives.heads import head_inputs
from train.objectives.mtp import MtpLossConfig
from train.objectives.terms import Terms, count_targets, shifted_targets
from train.setup import TrainingSetup
from train.signals.signal import Hidden, signal_of

logger = logging.getLogger(__name__)


def check_first(
    put: Callable[[HostBatch], Batch],
    setup: TrainingSetup,
    layout: Layout,
    left_out: Callable[[], AbstractContextManager],
) -> Callable[[HostBatch], Batch]:
    """Returns ``put`` with a look at the first batch that it places, before the first step.

    Args:
      left_out: in its context time is not counted for the step.

    Raises:
      ValueError: at the first batch, if the student diverges from itself.
    """
    is_first = True

    def checked(batch: HostBatch) -> Batch:
        nonlocal is_first
        placed = put(batch)
        if is_first:
            is_first = False
            with left_out():
                _tell(jax.device_get(_figures(setup, layout, placed)))
        return placed

    return checked


def _figures(setup: TrainingSetup, layout: Layout, batch: Batch) -> Terms:
    """Computes the figures of the first micro-batch with the student as it starts."""

    @jax.jit
    def compute(params, frozen, whole_batch):
        batch = {name: array[0] for name, array in whole_batch.items()}
        model = nnx.merge(setup.graphdef, params, frozen.rest, copy=True)
        mtp = MtpLossConfig(weight=0 if model.mtp is None else 1)
        student, *drafts = head_inputs(model, batch, mtp=mtp, remat=layout.remat, dropout_key=None)
        own, targets = Hidden(*student), shifted_targets(batch, 1)
        compare = partial(divergence_from, kind="forward_kl", chunk=layout.loss_chunk)
        _, sums = compare(student, signal_of(batch, frozen.teacher_head), *targets)
        sums["own"], _ = compare(student, own, *targets)
        found = {name: value / jnp.maximum(count_targets(batch, 1), 1) for name, value in sums.items()}
        for draft in drafts:
            _, sums = compare(draft, own.shift(1), *shifted_targets(batch, 2))
            found["acceptance"] = sums["overlap_tv"] / jnp.maximum(count_targets(batch, 2), 1)
        return found

    return compute(setup.state.params, setup.frozen, dict(batch))


def _tell(figures: Mapping[str, SupportsFloat]) -> None:
    own = float(figures["own"])
    if own != 0:
        raise ValueError(
            f"the student diverges from itself by {own:g}, which must be exactly 0: the losses of this run would be "
            "wrong; please report it with the mesh and the versions of jax and libtpu."
        )
    shown = {
        "cross-entropy of the teacher": "teacher_loss",
        "cross-entropy of the teacher, at least": "teacher_loss_bound",
        "cross-entropy of the student": "student_loss",
        "KL(teacher, student)": "kl_forward",
        "KL(student, teacher)": "kl_reverse",
        "mass outside the teacher's top k": "tail_mass",
    }
    parts = [f"{label} {float(figures[name]):.4f}" for label, name in shown.items() if name in figures]
    logger.info("first batch, nats a token: %s, KL(student, student) 0", ", ".join(parts))
    if "acceptance" in figures:
        logger.info("first batch: a draft of the MTP head is accepted with probability %.4f", figures["acceptance"])
