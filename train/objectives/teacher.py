"""The settings of a teacher: which model it is, what its signal is, and where the signal comes from."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from train.objectives.checks import check_choices


@dataclass(frozen=True)
class TeacherConfig:
    """The model that a student is distilled from, and how it is heard."""

    path: str = field(default="", compare=False)
    """Hugging Face folder, also of a bucket (``gs://``), or hub id. It is not compared when a run resumes; the
    fingerprint of its files is."""
    adapter: str | None = field(default=None, compare=False)
    """PEFT adapter of the teacher, given likewise."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of its weights, its matrix products and its hidden states; with ``own_base`` it is that of the student."""
    own_base: bool = False
    """The teacher is the checkpoint that the student starts from, without any adapter. It takes no memory of its own
    and needs a student of which adapters train, unless its signal is stored."""
    store: str | None = field(default=None, compare=False)
    """Folder with the stored signal, which ``python -m train.teach`` writes; None computes it in every step."""
    signal: Literal["hidden", "topk"] = "hidden"
    """What is heard of the teacher: its last hidden states, from which every divergence follows exactly, or its ``k``
    most likely tokens with the mass of the rest."""
    k: int = 64
    """Tokens of the signal ``topk``. Validation compares as many of both models where the signal is ``hidden``."""
    width: Annotated[int | None, tyro.conf.Suppress] = None
    """Width of its hidden states, which its checkpoint decides."""

    def __post_init__(self):
        check_choices(self, "teacher.")
        if self.k < 1:
            raise ValueError(f"teacher.k={self.k} must be at least 1; 64 is a good start.")
        if self.own_base and (self.path or self.adapter):
            named = f"teacher.path={self.path!r}" if self.path else f"teacher.adapter={self.adapter!r}"
            raise ValueError(
                f"teacher.own_base takes the student's own base, but {named} names another model; leave one out, the "
                "path with --teacher.path ''."
            )
        if self.adapter is not None and not self.path:
            raise ValueError(f"teacher.adapter={self.adapter!r} needs its base; name it with --teacher.path DIR.")

    def with_width(self, width: int) -> "TeacherConfig":
        """Returns these settings with the width of a teacher that was found."""
        return replace(self, width=width)

    @property
    def is_live(self) -> bool:
        """Whether the signal is computed during training."""
        return self.store is None

    @property
    def shares_student(self) -> bool:
        """Whether the signal is computed with the arrays of the student."""
        return self.own_base and self.is_live
