"""What a store belongs to: everything that decides its documents and the signal for them."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen35_jax.processing import Tokenizer
from qwen35_jax.runs import identify_base
from qwen35_jax.storage import fingerprint
from train.config.data import DataConfig
from train.config.vision import VisionDataConfig
from train.data.documents import Documents
from train.signals.signal import SignalKind, SignalSettings

VERSION = 1
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def identify_teacher(folder: Path, adapter: Path | None = None) -> dict[str, Any]:
    """Returns as JSON values what tells a checkpoint, with the adapter on top of it, from others."""
    base = identify_base(folder)
    identity = {"model": base.model, "tokenizer": dict(base.tokenizer)}
    if adapter is not None:
        identity["adapter"] = fingerprint(adapter / name for name in _ADAPTER_FILES if (adapter / name).is_file())
    return identity


@dataclass(frozen=True)
class Header:
    """What a store belongs to. The order of the documents, batches and meshes are not in it: they decide nothing."""

    signal: SignalKind
    k: int
    """Tokens of the signal ``topk``; 0 for ``hidden``."""
    width: int
    """Width of the teacher."""
    dtype: str
    """What the teacher computes in."""
    vocabulary: int
    """Tokens of both models."""
    tokenizer: str
    chat_template: str
    train_on: Literal["all", "last", "each"]
    train_on_thinking: bool
    sources: tuple[str, ...]
    """Content and form of each source, those of the validation data too."""
    sequence_length: int
    """Longest document of a conversation, and the length of the pieces of a text."""
    teacher: Mapping[str, Any] | None
    """What ``identify_teacher`` says; None in a run that does not know the teacher but by its store."""
    vision: Mapping[str, Any] | None = None
    """How images and videos are read; None in a store of text."""
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns the header as JSON values; that of a text says nothing of images."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name != "vision" or value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Header":
        """Reads what ``to_json`` returned.

        Raises:
          ValueError, TypeError, KeyError: it is something else.
        """
        if values["version"] != VERSION:
            raise ValueError(f"it is of version {values['version']}, and this is version {VERSION}")
        fields: dict[str, Any] = {**values, "sources": tuple(values["sources"])}
        return cls(**fields)

    def fields_unlike(self, other: "Header") -> list[str]:
        """Names the fields that have other values in another header."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def make_header(
    settings: SignalSettings,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    vocabulary: int,
    documents: Sequence[Documents] = (),
    teacher: Mapping[str, Any] | None = None,
) -> Header:
    """Returns what the store of a run must belong to.

    Args:
      documents: those of training and, where they are others, of validation, after their check; none if they are not
        known yet.
      teacher: None if the run knows the teacher by its store alone.
    """
    return Header(
        signal=settings.signal,
        k=settings.k if settings.signal == "topk" else 0,
        width=settings.width or 0,
        dtype=settings.dtype,
        vocabulary=vocabulary,
        tokenizer=_digest(tokenizer.backend.to_str()),
        chat_template=_digest(tokenizer.chat_template.source),
        train_on=data.train_on,
        train_on_thinking=data.train_on_thinking,
        sources=tuple(sorted({origin for each in documents for origin in each.origins})),
        sequence_length=data.sequence_length,
        teacher=teacher,
        vision=None if data.vision is None else _deciding(data.vision),
    )


def _deciding(vision: VisionDataConfig) -> dict[str, Any]:
    """Returns the settings that decide the patches of documents, and which documents there are."""
    return {field.name: getattr(vision, field.name) for field in dataclasses.fields(vision) if field.compare}


def differences(stored: Header, wanted: Header) -> list[str]:
    """Says what a store has otherwise than a run wants it, and what to do about each.

    A run may read fewer sources than the store has.
    """
    return list(_differences(stored, wanted))


def _differences(stored: Header, wanted: Header) -> Iterator[str]:
    options = {
        "signal": "teacher.signal", "k": "teacher.k", "dtype": "teacher.dtype", "width": "teacher.width",
        "train_on": "data.train_on", "train_on_thinking": "data.train_on_thinking",
    }  # fmt: skip
    for name, option in options.items():
        theirs, ours = getattr(stored, name), getattr(wanted, name)
        is_free = (name == "width" and ours == 0) or (name == "k" and stored.signal != wanted.signal)
        if theirs != ours and not is_free:
            yield f"{option} is {theirs!r} there and {ours!r} here; give the former"
    if wanted.sequence_length > stored.sequence_length:
        yield (
            f"data.sequence_length is {stored.sequence_length} there and {wanted.sequence_length} here, so that longer "
            "documents may be missing; give the former"
        )
    yield from _vision_differences(stored.vision, wanted.vision)
    if stored.vocabulary != wanted.vocabulary:
        yield f"its teacher has {stored.vocabulary} tokens and the student {wanted.vocabulary}; both need the same"
    if stored.tokenizer != wanted.tokenizer:
        yield "it was made with another tokenizer; take the student's tokenizer.json from the teacher's checkpoint"
    if stored.chat_template != wanted.chat_template:
        yield "it was made with another chat template; take the one that it was made with"
    if other := missing_sources(stored, wanted.sources):
        yield other
    if wanted.teacher is None or stored.teacher is None:
        return
    for part in ("model", "adapter"):
        if stored.teacher.get(part) != wanted.teacher.get(part):
            yield f"its teacher has another {part} than the run's teacher; name the one that it was written with"


def _vision_differences(stored: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> Iterator[str]:
    if stored is None or wanted is None:
        if stored is not None:
            yield "it was made with data.vision, which the run lacks; give it"
        if wanted is not None:
            yield "it was made without data.vision, so that it knows text alone; leave it out"
        return
    for name, theirs in stored.items():
        ours = wanted[name]
        # Documents with more patches than a sequence held may be missing; that is all it decides.
        is_wrong = ours > theirs if name == "patches_per_sequence" else ours != theirs
        if is_wrong:
            yield f"data.vision.{name} is {theirs!r} there and {ours!r} here; give the former"


def missing_sources(stored: Header, sources: Iterable[str]) -> str | None:
    """Says that a store was not made from these sources, if so."""
    if not (other := set(sources) - set(stored.sources)):
        return None
    return (
        f"it was made from other data: {len(other)} of the sources are not in it, by their content and form; give the "
        "data that it was made from"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
