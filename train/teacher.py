"""The teacher of a distillation: found and checked before the student is loaded, then brought onto the mesh."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.chat_files import end_tokens
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import load, match_tensors
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer
from train.config import Distillation, Recipe, TeacherConfig, TrainConfig
from train.signals.header import identify_teacher
from train.signals.live import LiveTeacher
from train.signals.store import Store

logger = logging.getLogger(__name__)


class Teacher(NamedTuple):
    """A teacher that fits the student."""

    settings: TeacherConfig
    """With the width decided."""
    identity: Mapping[str, Any]
    """What tells it from other teachers, for the run record."""
    folder: Path | None = None
    """Its checkpoint, if it is loaded."""
    adapter: Path | None = None
    store: Store | None = None
    """Its stored signal, if it is not."""


def find_teacher(
    recipe: Recipe, objective: Distillation, *, folder: Path, student: ModelConfig, tokenizer: Tokenizer
) -> Teacher:
    """Finds the teacher, or its stored signal, and checks that the student can learn from it.

    Args:
      recipe: of the student.
      folder: the student's checkpoint.

    Raises:
      FileNotFoundError: there is no such checkpoint or store.
      ValueError: none is named, its checkpoint is incomplete or of a mixture of experts, it has another tokenizer or
        vocabulary than the student, or the store does not belong to the run.
    """
    settings, vocabulary = objective.teacher, student.text.vocab_size
    if settings.k > vocabulary:
        raise ValueError(f"teacher.k={settings.k} is more than the {vocabulary} token ids of the student; lower it.")
    if settings.own_base:
        settings = replace(settings, dtype=recipe.model.dtype, width=student.text.hidden_size)
    if settings.store is not None:
        store, known = Store.open(settings.store), _identity_at_hand(settings, folder)
        store.check(settings, recipe.data, tokenizer, vocabulary=vocabulary, teacher=known)
        return Teacher(settings.with_width(store.width), store.identity, store=store)
    if settings.own_base:
        return Teacher(settings, identify_teacher(folder))
    if not settings.path:
        raise ValueError(
            "no teacher is named; give --teacher.path DIR, the folder of a checkpoint, --teacher.own-base, or "
            "--teacher.store DIR, which `python -m train.teach` writes."
        )
    place = find_folder(settings.path)
    config, _ = match_tensors(ModelConfig.from_hf(place), read_checkpoint(place), place)
    check_same_tokens(place, config, student, tokenizer)
    if recipe.data.vision is not None:
        check_sees_images(str(place), config, student)
    if objective.rollouts is not None and (ends := _other_ends(place, folder)):
        logger.warning(ends)
    adapter = None if settings.adapter is None else find_folder(settings.adapter)
    return Teacher(
        settings.with_width(config.text.hidden_size), identify_teacher(place, adapter), folder=place, adapter=adapter
    )


def _identity_at_hand(settings: TeacherConfig, student: Path) -> Mapping[str, Any] | None:
    """Returns what tells the teacher that the run names from others; None if its files are not on this machine."""
    if settings.own_base:
        return identify_teacher(student)
    folder = Path(settings.path).expanduser()
    adapter = None if settings.adapter is None else Path(settings.adapter).expanduser()
    if not settings.path or not (folder / "config.json").is_file() or (adapter is not None and not adapter.is_dir()):
        return None
    return identify_teacher(folder, adapter)


def check_same_vocabulary(name: str, teacher: ModelConfig, student: ModelConfig) -> None:
    """Raises a ValueError if a teacher, which messages call by this name, knows another number of tokens."""
    if teacher.text.vocab_size != student.text.vocab_size:
        raise ValueError(
            f"the teacher {name} has a vocabulary of {teacher.text.vocab_size} token ids and the student one of "
            f"{student.text.vocab_size}, so that their distributions cannot be compared; choose a teacher of the same "
            "family."
        )


def check_sees_images(name: str, teacher: ModelConfig, student: ModelConfig) -> None:
    """Raises a ValueError if a teacher, which messages call by this name, cannot see the images of a student's data."""
    made, read = (
        None if each.vision is None else (each.vision.patch_size, each.vision.temporal_patch_size)
        for each in (student, teacher)
    )
    if made != read:
        raise ValueError(
            f"the teacher {name} has no vision tower that reads the student's patches, but data.vision has images; "
            "choose a teacher of the same family."
        )


def check_same_tokens(folder: Path, teacher: ModelConfig, student: ModelConfig, tokenizer: Tokenizer) -> None:
    """Checks that a token id means the same to both models.

    Raises:
      ValueError: it does not.
    """
    check_same_vocabulary(str(folder), teacher, student)
    own = Tokenizer.from_pretrained(folder)
    if own.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ValueError(
            f"the teacher {folder} has another tokenizer than the student, so that a token id means something else to "
            "it; choose a teacher of the same family."
        )
    if own.chat_template.source != tokenizer.chat_template.source:
        logger.warning(
            "the teacher's chat template is not the student's; documents are rendered with the student's, which the "
            "teacher may not know. Copy the teacher's chat_template.jinja beside the student to render as it does."
        )


def _other_ends(teacher: Path, student: Path) -> str | None:
    """Says what follows from end tokens that differ, as those of a Base model and of a chat model do."""
    ends = [set(end_tokens(folder)) for folder in (teacher, student)]
    if ends[0] == ends[1]:
        return None
    return (
        f"the teacher ends an answer at {sorted(ends[0])} and the student at {sorted(ends[1])}, as a chat model and a "
        "Base model do. A student that never saw the teacher's format can write longer and longer answers when it is "
        "taught on its own; fine-tune it on conversations, or on the teacher's stored signal, before."
    )


class Heard(NamedTuple):
    """How a run hears its teacher."""

    head: jax.Array | None = None
    """The weight of the teacher's output head, for its hidden states."""
    live: LiveTeacher | None = None
    """What computes the signal of a batch; None where the batch holds it."""


def hear(teacher: Teacher, config: TrainConfig, student: Qwen35 | None, mesh: Mesh) -> Heard:
    """Brings a teacher onto the mesh, or only its head where its signal is stored. Call it under the mesh.

    Args:
      student: before it gets adapters; where it is its own teacher, both share their arrays. Else it may be None.
    """
    settings = teacher.settings
    if teacher.store is not None:
        return Heard(teacher.store.head_on(mesh) if settings.signal == "hidden" else None)
    if teacher.folder is None:
        assert student is not None, "a teacher without a checkpoint is the student's base"
        model = student
    else:
        options = {
            "param_dtype": settings.dtype,
            "delta_rule": config.layout.delta_rule,
            "vision": config.recipe.data.vision is not None,
        }
        model = load(teacher.folder, settings.dtype, mesh, teacher.adapter, **options)
    live = LiveTeacher(model, settings, mesh, chunk_tokens=config.layout.loss_chunk)
    return Heard(live.head if settings.signal == "hidden" else None, live)
