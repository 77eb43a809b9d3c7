"""Distillation: the divergence of the student's distribution from a teacher's, at every trained token.

Where the tokens come from (data, or answers that the student samples) and where the teacher's signal comes from (a live
teacher, or a store) is not seen here: both ride in the batch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.config import TextConfig
from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.linear_cross_entropy import Divergence, linear_cross_entropy
from qwen35_jax.ops.positions import shift_left
from train.batch import TOKEN_FIELDS, Batch, Fields
from train.objectives.answers import NUM_QUARTERS, count_quarters, labelled_targets, quarter_names, quarters
from train.objectives.checks import check_choices, check_finite
from train.objectives.divergence import divergence_from
from train.objectives.heads import HeadInput, head_inputs
from train.objectives.mtp import MtpGradient, MtpLossConfig, WithMtp
from train.objectives.rollouts import ROLLOUT_FIELDS, RolloutConfig
from train.objectives.teacher import TeacherConfig
from train.objectives.terms import Objective, Terms, count_targets, shifted_targets
from train.signals.signal import Hidden, Signal, signal_fields, signal_of

_OF_HIDDEN = ("kl_forward", "kl_reverse", "student_entropy", "teacher_entropy", "teacher_loss", "agreement")
_OF_TOP_K = (
    "student_entropy", "agreement", "tail_mass", "student_tail_mass", "targets_in_top_k", "teacher_loss_bound",
)  # fmt: skip
# What validation adds. The first needs a search through the vocabulary.
_MORE_OF_HIDDEN, _MORE_OF_TOP_K = ("top_k_overlap", "teacher_top_k_mass", "student_top_k_mass"), ("top_k_overlap",)
# Which sums of a divergence by group become which figures by quarter.
_QUARTERS = {"divergence": "kl", "kl_forward": "kl_forward", "kl_reverse": "kl_reverse"}
# A sampled token is told from others by its log-probability, which may round to 0.
_BELOW_ZERO = -1e-30


@dataclass(frozen=True)
class MtpDistillConfig(MtpLossConfig):
    """What the MTP head learns beside the distillation of the model."""

    gradient: MtpGradient = "head_only"
    """Which parameters the MTP loss trains; with the target ``self`` the MTP block alone."""
    target: Literal["self", "teacher", "labels"] = "self"
    """What the head shall predict: the student's own distribution one token later, which is what its drafts are
    verified against; the teacher's; or the tokens themselves."""
    divergence: Literal["forward_kl", "total_variation"] = "forward_kl"
    """Of the head from its target, unless that is the labels. A draft is accepted with the probability 1 - total
    variation (Leviathan et al., 2023)."""

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, "mtp.")
        if self.target == "self" and self.gradient != "head_only":
            raise ValueError(
                f"mtp.target=self makes the model its own target, so that mtp.gradient={self.gradient!r} would move "
                "the target; give mtp.gradient='head_only', or another target."
            )
        if self.target == "labels" and self.divergence != "forward_kl":
            raise ValueError(
                f"mtp.divergence={self.divergence!r} is never used with mtp.target=labels, which is a cross-entropy."
            )


@dataclass(frozen=True)
class Distillation(WithMtp):
    """Minimises the divergence from a teacher at the trained tokens of documents, and the MTP head's own."""

    teacher: TeacherConfig = TeacherConfig()
    rollouts: RolloutConfig | None = None
    """Answers that the student samples to be taught on; None takes the answers of the data."""
    divergence: Divergence | None = None
    """``forward_kl`` is KL(teacher, student), ``reverse_kl`` KL(student, teacher), ``jsd`` the generalised
    Jensen-Shannon divergence (Agarwal et al., 2024). By default forward on data and reverse on rollouts."""
    beta: float | None = None
    """Share of the teacher in the mixture of ``jsd``, strictly between 0 and 1; by default 0.5."""
    loss_temperature: float = 1.0
    """Divides both models' logits in the divergence, which is multiplied by its square (Hinton et al., 2015)."""
    divergence_weight: float = 1.0
    """Factor of the divergence."""
    loss_weight: float = 0.0
    """Factor of the cross-entropy with the tokens of the data. Rollouts have no labels."""
    mtp: MtpDistillConfig = MtpDistillConfig()
    has_mtp_head: Annotated[bool, tyro.conf.Suppress] = field(default=False, compare=False)
    """Whether the student has an MTP head, which its checkpoint decides. Validation then tells how likely its drafts
    are accepted, also if no loss trains it."""
    kind: Annotated[str, tyro.conf.Suppress, tyro.conf.arg(name="objective")] = field(
        default="distillation", init=False
    )
    """For the run record, which must tell one objective from another."""

    def __post_init__(self):
        check_choices(self)
        check_finite(self)
        if self.divergence_weight <= 0:
            raise ValueError(f"divergence_weight={self.divergence_weight} must be positive, or nothing is distilled.")
        if self.loss_weight < 0:
            raise ValueError(f"loss_weight={self.loss_weight} is negative; 0 leaves the labels out.")
        if self.loss_temperature <= 0:
            raise ValueError(f"loss_temperature={self.loss_temperature} must be positive; 1 changes nothing.")
        if self.beta is not None and self.divergence != "jsd":
            raise ValueError(
                f"beta={self.beta} belongs to divergence='jsd', but the divergence is {self.chosen_divergence}; remove "
                "beta or give divergence='jsd'."
            )
        if self.beta is not None and not 0 < self.beta < 1:
            raise ValueError(
                f"beta={self.beta} must lie strictly between 0 and 1; its limits are divergence='forward_kl' and "
                "'reverse_kl'."
            )
        self._check_signal()
        if self.rollouts is not None:
            self._check_rollouts(self.rollouts)

    def _check_signal(self) -> None:
        """Checks that the signal tells what is asked of it."""
        if self.teacher.signal == "hidden":
            return
        problems = {
            f"divergence={self.chosen_divergence!r}": self.chosen_divergence != "forward_kl",
            f"loss_temperature={self.loss_temperature:g}": self.loss_temperature != 1,
            f"mtp.divergence={self.mtp.divergence!r} with mtp.target=teacher": (
                self.mtp.target == "teacher" and self.mtp.divergence != "forward_kl"
            ),
        }
        for setting, is_wrong in problems.items():
            if is_wrong:
                raise ValueError(
                    f"{setting} needs the teacher's whole distribution, but teacher.signal=topk holds its "
                    f"{self.teacher.k} most likely tokens and the mass of the rest; give teacher.signal='hidden', or "
                    "divergence='forward_kl' at loss_temperature 1."
                )

    def _check_rollouts(self, rollouts: RolloutConfig) -> None:
        if not self.teacher.is_live:
            raise ValueError(
                f"teacher.store={self.teacher.store!r} cannot hold the signal for answers that are not written yet; "
                "leave it out, so that the teacher reads the rollouts, or leave out the rollouts."
            )
        if self.loss_weight and rollouts.fraction == 1:
            raise ValueError(
                f"loss_weight={self.loss_weight} needs labels, but rollouts.fraction=1 leaves no tokens of the data; "
                "lower rollouts.fraction or give loss_weight 0."
            )

    @property
    def chosen_divergence(self) -> Divergence:
        """The divergence with its default decided."""
        return self.divergence or ("forward_kl" if self.rollouts is None else "reverse_kl")

    @property
    def chosen_beta(self) -> float | None:
        """The share of the teacher with its default decided; None where there is no mixture."""
        return 0.5 if self.divergence == "jsd" and self.beta is None else self.beta

    @property
    def validates_rollouts(self) -> bool:
        """Whether validation answers held-out prompts."""
        return self.rollouts is not None and self.rollouts.eval_prompts > 0

    @property
    def batch_fields(self) -> Fields:
        """The arrays that a batch must hold."""
        rollouts = {} if self.rollouts is None else ROLLOUT_FIELDS
        return {**TOKEN_FIELDS, **signal_fields(self.teacher), **rollouts}

    def check_model(self, text: TextConfig, folder: Path) -> None:
        """Raises a ValueError if the MTP loss has no MTP head, or the model cannot write the rollouts."""
        super().check_model(text, folder)
        if self.rollouts is not None:
            self.rollouts.check_model(text)

    def make(self, *, loss_chunk: int, remat: Remat, validates: bool = False) -> Objective:
        """Builds the main term ``divergence``, ``loss``, a term for each MTP step, and figures that train nothing.

        ``loss`` is the cross-entropy with the tokens of the data; where it has no weight, with all trained tokens.

        Args:
          loss_chunk: positions of each sequence whose logits exist at once.
          remat: what the backward pass keeps of each period of layers.
          validates: adds what costs a search through the vocabulary, and leaves out what only rollouts have.
        """
        figures, mtp = self._figures(validates=validates), self._heard_mtp(validates=validates)
        weights = {"divergence": self.divergence_weight, "loss": self.loss_weight, **self.mtp.weights}

        def counts(batch: Batch) -> Terms:
            main, by_quarter = count_targets(batch, 1), count_quarters(batch)
            counted = dict.fromkeys((*weights, *figures), main)
            for name in _QUARTERS:
                counted |= dict(zip(quarter_names(name), by_quarter, strict=True))
            for offset, name in enumerate(mtp.weights, start=2):
                counted |= dict.fromkeys((name, name.replace("loss", "acceptance")), count_targets(batch, offset))
            if self.loss_weight:
                counted["loss"] = labelled_targets(batch)[1].sum()
            if "sampler_gap" in figures:
                counted |= dict.fromkeys(("sampler_gap", "k1"), main - labelled_targets(batch)[1].sum())
            return {name: counted[name] for name in (*weights, *figures)}

        def sums(
            model: Qwen35,
            batch: Batch,
            dropout_key: PRNGKeyArray | None,
            teacher_head: Float[Array, "V E"] | None = None,
        ) -> Terms:
            found = head_inputs(model, batch, mtp=mtp, remat=remat, dropout_key=dropout_key)
            signal = signal_of(batch, teacher_head)
            terms = self._main_terms(found[0], signal, batch, chunk=loss_chunk, validates=validates)
            if self.loss_weight:
                terms["loss"] = linear_cross_entropy(*found[0], *labelled_targets(batch), chunk_tokens=loss_chunk)
            for step, name in enumerate(mtp.weights, start=1):
                more = {"chunk": loss_chunk, "validates": validates}
                value, acceptance = _mtp_terms(mtp, step, found, signal, batch, **more)
                terms |= {name: value, name.replace("loss", "acceptance"): acceptance}
            return {name: terms[name] for name in (*weights, *figures)}

        return Objective(weights | dict.fromkeys(figures, 0.0), counts, sums)

    def _heard_mtp(self, *, validates: bool) -> MtpDistillConfig:
        """Returns the settings of the MTP head as it is looked at: in validation also if it does not train."""
        if validates and self.has_mtp_head and not self.mtp.weight:
            return MtpDistillConfig(num_steps=self.mtp.num_steps)
        return self.mtp

    def _figures(self, *, validates: bool) -> list[str]:
        """Names the terms that train nothing."""
        is_exact = self.teacher.signal == "hidden"
        figures, mtp = [*(_OF_HIDDEN if is_exact else _OF_TOP_K)], self._heard_mtp(validates=validates)
        for name in _QUARTERS if validates and is_exact else ("divergence",):
            figures += quarter_names(name)
        # The share of accepted drafts comes for nothing with the target ``self``.
        if mtp.target == "self" or validates:
            figures += [name.replace("loss", "acceptance") for name in mtp.weights]
        if validates:
            return [*figures, *(_MORE_OF_HIDDEN if is_exact else _MORE_OF_TOP_K)]
        if self.rollouts is not None:
            figures += ["sampler_gap", "k1"] if is_exact else ["sampler_gap"]
        return figures

    def _main_terms(self, main: HeadInput, signal: Signal, batch: Batch, *, chunk: int, validates: bool) -> Terms:
        """Returns the sums that come with the divergence at every trained token."""
        targets, weights = shifted_targets(batch, 1)
        value, extras = divergence_from(
            main,
            signal,
            targets,
            weights,
            kind=self.chosen_divergence,
            beta=self.chosen_beta,
            temperature=self.loss_temperature,
            chunk=chunk,
            groups=quarters(batch),
            top_k=self.teacher.k if validates else None,
            sampled=None if self.rollouts is None or validates else _sampled_log_probs(batch),
        )
        for figure, group in _QUARTERS.items():
            found = (extras.get(f"{group}_group_{number}") for number in range(NUM_QUARTERS))
            extras |= {
                name: value for name, value in zip(quarter_names(figure), found, strict=True) if value is not None
            }
        return extras | {"divergence": value, "loss": extras["student_loss"]}


def _sampled_log_probs(batch: Batch) -> Float[Array, "B T"]:
    """Returns the log-probability of each next token when it was sampled, below 0, and 0 for those of the data."""
    sampled = batch["trained"] & ~batch["labelled"]
    return shift_left(jnp.where(sampled, jnp.minimum(batch["sampled_log_probs"], _BELOW_ZERO), 0), 1)


def _mtp_terms(
    mtp: MtpDistillConfig,
    step: int,
    found: list[HeadInput],
    signal: Signal,
    batch: Batch,
    *,
    chunk: int,
    validates: bool,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sums of an MTP step's loss and of the probability that its drafts are accepted.

    Position i of the step predicts the token i + 1 + step, as the model does at position i + step.
    """
    targets, weights = shifted_targets(batch, 1 + step)
    own, drafts = Hidden(*jax.lax.stop_gradient(found[0])).shift(step), found[step]
    shared = {"targets": targets, "weights": weights, "chunk": chunk}
    if mtp.target == "self":
        value, extras = divergence_from(drafts, own, kind=mtp.divergence, **shared)
        return value, extras["overlap_tv"]
    accepted = jnp.zeros(())
    if validates:
        accepted = divergence_from(drafts, own, kind="total_variation", **shared)[1]["overlap_tv"]
    if mtp.target == "teacher":
        value, _ = divergence_from(drafts, signal.shift(step), kind=mtp.divergence, **shared)
        return value, accepted
    return linear_cross_entropy(*drafts, targets, weights, chunk_tokens=chunk), accepted
