"""The run record: ``config.json`` of a run directory, which is checked when the run resumes.

It holds the settings as ``recipe``, ``layout`` and ``options``, and what the recipe was applied to as ``identity``.
Every setting is judged by its class (see ``train.config``), so a new setting needs no entry here. A setting that an
older record lacks counts as having its default.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from qwen35_jax.runs import RECORD, BaseIdentity, identify_base
from qwen35_jax.storage import write_atomically
from train.config import TrainConfig

logger = logging.getLogger(__name__)


class RunRecord(NamedTuple):
    """The resolved settings of a run and what they were applied to."""

    config: TrainConfig
    base: BaseIdentity
    """Identity of the base checkpoint. It ties an adapter's checkpoints, which hold no frozen weight, to it."""
    data: Mapping[str, Any]
    """What decides the batches, as the data pipeline reports it."""
    conversations: bool
    """Whether conversations were among the data, so that what is exported is a chat model."""
    validation: Mapping[str, Any] | None = None
    """What decides the validation data, where there are some."""
    teacher: Mapping[str, Any] | None = None
    """What tells the teacher of a distillation from others."""

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON values."""
        identity = self.base._asdict() | {"data": dict(self.data), "conversations": self.conversations}
        if self.validation is not None:
            identity["validation"] = dict(self.validation)
        if self.teacher is not None:
            identity["teacher"] = dict(self.teacher)
        return _as_json(dataclasses.asdict(self.config) | {"identity": identity})


class _Difference(NamedTuple):
    name: str
    old: Any
    new: Any
    told: str = ""

    def __str__(self) -> str:
        return self.told or f"{self.name} was {self.old!r}, now {self.new!r}"


def make_record(
    config: TrainConfig,
    *,
    model_folder: Path,
    data_identity: Mapping[str, Any],
    validation_identity: Mapping[str, Any] | None = None,
    teacher_identity: Mapping[str, Any] | None = None,
    conversations: bool = False,
) -> RunRecord:
    """Returns the record of a run that starts from a checkpoint in ``model_folder``.

    Args:
      data_identity: what decides the batches, as the data pipeline reports it.
      validation_identity: what decides the validation data, where there are some.
      teacher_identity: what tells the teacher of a distillation from others.
      conversations: whether conversations are among the data.
    """
    base = identify_base(model_folder)
    return RunRecord(config, base, data_identity, conversations, validation_identity, teacher_identity)


def write_record(workdir: Path, record: RunRecord, outcome: Mapping[str, Any] | None = None) -> None:
    """Writes ``config.json``; ``outcome`` says how the run ended, and is absent before."""
    content = record.to_json() | ({} if outcome is None else {"outcome": dict(outcome)})
    write_atomically(workdir / RECORD, json.dumps(content, indent=2) + "\n")


def check_resumable(workdir: Path, record: RunRecord, name: str | None = None) -> None:
    """Compares a run that is about to resume with what it was started with.

    Another recipe, base checkpoint or data is refused. Another layout is allowed with a warning, since it changes
    rounding only. More steps under a constant learning rate are allowed too, since they change no earlier step. A run
    may begin or cease to validate, but not go on with other validation data, whose losses could not be compared.

    Args:
      workdir: holds the record of the start.
      name: what errors call the run, if not by its directory.

    Raises:
      ValueError: something that affects the numbers differs, or the record cannot be read.
    """
    name = name or str(workdir)
    recorded, new = read_whole_record(workdir, name), record.to_json()
    old_base, new_base = recorded["identity"], new["identity"]
    layout = sorted(_differences(record.config.layout, recorded["layout"], new["layout"]))
    if layout:
        logger.warning(
            "%s differs from the interrupted part of the run: later steps may differ in the last digits",
            ", ".join(difference.name for difference in layout),
        )
    free = {"steps"} if record.config.recipe.optim.schedule == "constant" else set()
    binding = [
        difference
        for difference in (
            *_differences(record.config.recipe, recorded["recipe"], new["recipe"]),
            *_leaf_differences(old_base["model"], new_base["model"], "model_fingerprint"),
            # Records of earlier versions hold no digests of the tokenizer.
            *_leaf_differences(old_base.get("tokenizer", new_base["tokenizer"]), new_base["tokenizer"], "tokenizer"),
            *_data_differences(recorded, new, record.config),
            *_leaf_differences(old_base.get("teacher"), new_base.get("teacher"), "teacher"),
            *_validation_differences(recorded["identity"], new["identity"]),
        )
        if difference.name not in free
    ]
    if binding:
        raise ValueError(
            f"{name} was started with other settings: {'; '.join(map(str, sorted(binding)))}. Give the old values "
            f"and data to resume, or another --workdir to start anew.{_how_to_lengthen(record, binding, name)}"
        )


def _how_to_lengthen(record: RunRecord, binding: list[_Difference], name: str) -> str:
    schedule = record.config.recipe.optim.schedule
    old, new = next(((each.old, each.new) for each in binding if each.name == "steps"), (0, 0))
    if schedule == "constant" or (None not in (old, new) and new <= old):
        return ""
    return (
        f" With optim.schedule={schedule} the rate of every step depends on their number, so that a longer run "
        f"is another one; to train on from a step, give --branch-from {name}@STEP and another --workdir."
    )


def read_whole_record(workdir: Path, name: str | None = None) -> dict[str, Any]:
    """Reads a record as JSON values, with the parts that resuming and branching compare.

    Args:
      name: what errors call the run, if not by its directory.

    Raises:
      ValueError: it is absent, damaged or of an earlier version.
    """
    path = f"{name or workdir}/{RECORD}"
    try:
        recorded = json.loads((workdir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(
            f"{path} cannot be read ({err}), so the checkpoints beside it cannot be resumed safely; restore the "
            "file, or begin again with another --workdir."
        ) from err
    missing = {"recipe", "layout", "identity"} - set(recorded if isinstance(recorded, dict) else ())
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(sorted(missing))}: it was written by an earlier version, whose runs cannot be "
            "resumed; finish the run with that version, or begin again with another --workdir."
        )
    return recorded


def _differences(settings: Any, old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator:
    """Yields the settings of a dataclass that differ and that are compared, by the names of their flags.

    Args:
      settings: tells the fields of the class and their defaults.
      old, new: its values as JSON.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields.values():
        if not field.compare:
            continue
        name = _join(prefix, _flag(field, hints[field.name]))
        before = old[field.name] if field.name in old else _default(field)
        value, after = getattr(settings, field.name), new[field.name]
        if dataclasses.is_dataclass(value) and isinstance(before, Mapping):
            yield from _differences(value, before, after, name)
        else:
            yield from _leaf_differences(before, after, name)
    for name in old.keys() - fields.keys():
        yield from _leaf_differences(old[name], None, _join(prefix, name))


def _data_differences(old: Mapping[str, Any], new: Mapping[str, Any], config: TrainConfig) -> Iterator[_Difference]:
    """Yields what decides the batches and differs between two records, except what is a setting of the recipe."""
    before, after = (_paths(each["recipe"]["data"]) for each in (old, new))
    settings = {each.name for each in _differences(config.recipe, old["recipe"], new["recipe"])}
    for each in _identity_differences(old["identity"]["data"], new["identity"]["data"], "data"):
        if each.name == "data.data":
            yield each._replace(told=_told(before, after, each.old, each.new))
        elif not {each.name, each.name.removeprefix("data.")} & settings:
            yield each


def _identity_differences(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> Iterator[_Difference]:
    """Yields what differs between two identities of data; where the content does, without what follows from it."""
    found = list(_leaf_differences(old, new, name))
    if any(each.name == f"{name}.data" for each in found):
        found = [each for each in found if each.name not in {f"{name}.{key}" for key in ("forms", "rows", "shares")}]
    yield from found


def _told(before: list[str], after: list[str], old: Any, new: Any) -> str:
    """Says which sources of data hold something else than those of the start; fingerprints tell it."""
    olds, news = str(old).split("-"), str(new).split("-")
    if not len(before) == len(after) == len(olds) == len(news):
        return f"the data were {', '.join(before)}, now {', '.join(after)}"
    changed = [each[:2] for each in zip(before, after, olds, news, strict=True) if each[2] != each[3]]
    return "; ".join(
        f"the content of {now} has changed" if was == now else f"the data were {was}, now {now} with another content"
        for was, now in changed
    )


def _paths(data: Mapping[str, Any]) -> list[str]:
    return [data["path"]] if data.get("path") else [source["path"] for source in data.get("sources", ())]


def _validation_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[_Difference]:
    if "validation" in old and "validation" in new:
        for each in _identity_differences(old["validation"], new["validation"], "validation"):
            changed = each.name == "validation.data"
            yield each._replace(told="the content of the validation data has changed" if changed else "")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns dotted name and both values of everything that differs between two records."""
    found = (each for name in old for each in _leaf_differences(old[name], new[name], name))
    return sorted((each.name, each.old, each.new) for each in found)


def _leaf_differences(old: Any, new: Any, name: str) -> Iterator[_Difference]:
    """Yields what differs between two JSON values, by dotted name."""
    before, after = dict(_flatten(old, name)), dict(_flatten(new, name))
    for leaf in before.keys() | after.keys():
        if before.get(leaf) != after.get(leaf):
            yield _Difference(leaf, before.get(leaf), after.get(leaf))


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, item in value.items():
        yield from _flatten(item, f"{name}.{key}")


def _flag(field: dataclasses.Field, hint: Any) -> str:
    """Returns the name of a field on the command line, which may be empty."""
    names = (getattr(annotation, "name", None) for annotation in getattr(hint, "__metadata__", ()))
    return next((name for name in names if name is not None), field.name)


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _default(field: dataclasses.Field) -> Any:
    """Returns the default of a field as JSON; None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = None if field.default is dataclasses.MISSING else field.default
    is_part = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return _as_json(dataclasses.asdict(value) if is_part else value)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_name))


def _name(function: Callable) -> str:
    """Returns where a function of a run file is defined."""
    return f"{function.__module__}.{function.__qualname__}"
