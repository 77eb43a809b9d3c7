"""What a store belongs to: everything that decides its documents and the signal for them."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen35_jax.processing import Tokenizer
from qwen35_jax.runs import identify_base
from qwen35_jax.storage import fingerprint
from train.data.documents import Documents
from train.signals.signal import SignalKind, SignalSettings

VERSION = 1
_ADAPTER_SUFFIXES = (".safetensors", ".json")


@dataclass(frozen=True)
class TeacherIdentity:
    """Fingerprints of the files that a teacher was loaded from."""

    model: str
    adapter: str | None


def identify_teacher(folder: Path, adapter: Path | None = None) -> TeacherIdentity:
    """Returns the identity of a checkpoint and of the adapter on top of it."""
    if adapter is None:
        return TeacherIdentity(identify_base(folder).model, None)
    files = (path for path in adapter.iterdir() if path.suffix in _ADAPTER_SUFFIXES)
    return TeacherIdentity(identify_base(folder).model, fingerprint(files))


@dataclass(frozen=True)
class Header:
    """What a store belongs to. The order of the documents, batches and meshes are not in it: they decide nothing."""

    signal: SignalKind
    k: int
    """Tokens of the signal ``topk``; 0 for ``hidden``."""
    width: int | None
    """Width of the teacher; None for ``topk``."""
    dtype: str
    """What the teacher computes in."""
    vocabulary: int
    """Tokens of both models."""
    tokenizer: str
    chat_template: str | None
    train_on: Literal["all", "last", "each"]
    train_on_thinking: bool
    sources: tuple[str, ...]
    """Content and form of each source, those of the validation data too."""
    sequence_length: int
    """Longest document of a conversation, and the length of the pieces of a text."""
    teacher: TeacherIdentity | None
    """None in a run that does not know the teacher but by its store."""
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns the header as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Header":
        """Reads what ``to_json`` returned.

        Raises:
          ValueError, TypeError, KeyError: it is something else.
        """
        if values["version"] != VERSION:
            raise ValueError(f"it is of version {values['version']}, and this is version {VERSION}")
        teacher = TeacherIdentity(**values["teacher"])
        fields: dict[str, Any] = {**values, "sources": tuple(values["sources"]), "teacher": teacher}
        return cls(**fields)


def make_header(
    settings: SignalSettings,
    tokenizer: Tokenizer,
    documents: Sequence[Documents],
    *,
    vocabulary: int,
    teacher: TeacherIdentity | None,
) -> Header:
    """Returns what the store of a run must belong to.

    Args:
      documents: those of training and, where they are others, of validation, after their check.
      teacher: None if the run knows the teacher by its store alone.
    """
    config, hidden = documents[0].config, settings.signal == "hidden"
    conversations = any(each.has_conversations for each in documents)
    return Header(
        signal=settings.signal,
        k=0 if hidden else settings.k,
        width=settings.width if hidden else None,
        dtype=settings.dtype,
        vocabulary=vocabulary,
        tokenizer=_digest(tokenizer.backend.to_str()),
        chat_template=_digest(tokenizer.chat_template.source) if conversations else None,
        train_on=config.train_on,
        train_on_thinking=config.train_on_thinking,
        sources=tuple(sorted({origin for each in documents for origin in each.origins})),
        sequence_length=config.sequence_length,
        teacher=teacher,
    )


def differences(stored: Header, wanted: Header) -> list[str]:
    """Says what a store has otherwise than a run wants it, and what to do about each.

    The run may read fewer sources than the store has.
    """
    return list(_differences(stored, wanted))


def _differences(stored: Header, wanted: Header) -> Iterator[str]:
    options = {
        "signal": "teacher.signal", "k": "teacher.k", "dtype": "teacher.dtype", "width": "teacher.width",
        "train_on": "data.train_on", "train_on_thinking": "data.train_on_thinking",
    }  # fmt: skip
    for name, option in options.items():
        theirs, ours = getattr(stored, name), getattr(wanted, name)
        if theirs != ours and not (name == "width" and ours is None):
            yield f"{option} is {theirs!r} there and {ours!r} here; give the former"
    if stored.vocabulary != wanted.vocabulary:
        yield f"its teacher has {stored.vocabulary} tokens and the student {wanted.vocabulary}; both need the same"
    if stored.tokenizer != wanted.tokenizer:
        yield "it was made with another tokenizer; take the student's tokenizer.json from the teacher's checkpoint"
    if None not in (stored.chat_template, wanted.chat_template) and stored.chat_template != wanted.chat_template:
        yield "it was made with another chat template; take the one that it was made with"
    if other := set(wanted.sources) - set(stored.sources):
        yield (
            f"{len(other)} of the {len(wanted.sources)} data sources of the run are not in it, by their content and "
            "form; give the data that it was made from"
        )
    if wanted.teacher is None or stored.teacher is None:
        return
    for part, option in (("model", "teacher.path"), ("adapter", "teacher.adapter")):
        if getattr(stored.teacher, part) != getattr(wanted.teacher, part):
            yield f"it is of another teacher than {option} names; name the one that it is of"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
