"""``config.json`` of a run directory: the resolved settings and what they were applied to, checked on resume."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen35_jax.storage import fingerprint, write_atomically

RECORD = "config.json"

# Settings that change no number of the run. Data is judged by what lies at its paths and by the shares of the sources;
# a row that one policy leaves out would have stopped the run under the other.
_FREE = (
    *("checkpoint", "evaluate", "evaluate_every", "export", "processes", "profile", "workdir", "model.path"),
    *("plan", "plan_json", "plan_price", "data.path", "data.sources", "data.hub_files", "data.num_threads"),
    *("data.epochs", "data.long_rows", "data.bad_rows"),
)
# Settings that change only the order of floating-point sums.
_LAYOUT = ("mesh", "model.remat", "loss_chunk")

logger = logging.getLogger(__name__)


def make_record(config: Any, *, model_folder: Path, data_identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings as JSON values, with what identifies the base checkpoint and the data.

    The fingerprint of the base ties an adapter's checkpoints, which hold no frozen weight, to their base.

    Args:
      data_identity: what decides the batches, as the data pipeline reports it.
    """
    weights = [path for path in model_folder.iterdir() if path.suffix == ".safetensors" or path.name == "config.json"]
    identity = {"model_fingerprint": fingerprint(weights), "data_identity": dict(data_identity)}
    return json.loads(json.dumps(dataclasses.asdict(config) | identity, default=_name))


def write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes ``config.json``."""
    write_atomically(workdir / RECORD, json.dumps(record, indent=2) + "\n")


def check_resumable(workdir: Path, record: Mapping[str, Any]) -> None:
    """Compares the settings of a run that is about to resume with those it was started with.

    A layout that differs (mesh, rematerialisation, loss chunks) is allowed with a warning, since it changes
    rounding only. So is a larger ``steps`` under a constant learning rate, which changes no step.

    Raises:
      ValueError: a setting that affects the numbers differs, or the recorded settings cannot be read.
    """
    path = workdir / RECORD
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(
            f"{path} cannot be read ({err}), so the checkpoints beside it cannot be resumed safely; restore the "
            "file, or begin again with another --workdir."
        ) from err
    old, new = dict(_flatten(recorded)), dict(_flatten(record))
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    layout = [name for name in differing if _belongs(name, _LAYOUT)]
    free = (*_FREE, "steps") if record["optim"]["schedule"] == "constant" else _FREE
    binding = [name for name in differing if not _belongs(name, (*_LAYOUT, *free))]
    if layout:
        logger.warning(
            "%s differs from the interrupted part of the run: later steps may differ in the last digits",
            ", ".join(layout),
        )
    if binding:
        changes = "; ".join(f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in binding)
        raise ValueError(
            f"{workdir} was started with other settings: {changes}. Give the old values to resume, or another "
            "--workdir to start anew."
        )


def _name(function: Callable) -> str:
    """Returns where a function of a run file is defined."""
    return f"{function.__module__}.{function.__qualname__}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _belongs(name: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of ``names`` or lies below one."""
    return any(name == other or name.startswith(other + ".") for other in names)
