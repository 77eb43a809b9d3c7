"""Lets the processes of a run find each other, wait for each other, and exchange what each of them knows.

On a TPU slice the processes find each other. Elsewhere flags or the environment name the coordinator (the address of
process 0), how many processes there are and which one this is. In a run of one process every function here returns at
once.

``join`` comes first, before anything asks JAX for its devices. The other functions must be called by all processes, in
the same order; a process that leaves one out lets the others wait for ever.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from qwen35_jax.liveness import connect

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"

# How long the cluster may take to tell the address of process 0; JAX's own limit.
_CLUSTER_SECONDS = 300
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")
_GPU_FILE = "/dev/nvidia0"


@dataclass(frozen=True)
class ProcessConfig:
    """The processes of a run. One machine needs none of these settings, and a TPU slice finds them."""

    coordinator: str | None = None
    """Address of process 0, ``host:port``; by default the variable JAX_COORDINATOR_ADDRESS."""
    count: int | None = None
    """Number of processes; by default JAX_NUM_PROCESSES."""
    index: int | None = None
    """Which one this is, from 0; by default JAX_PROCESS_ID."""
    detect: bool | None = None
    """Whether JAX asks the cluster (TPU slice, GKE, Slurm, Open MPI) for these three; by default on TPUs."""


def join(config: ProcessConfig) -> None:
    """Joins the processes of a run. From then on they end together (`qwen35_jax.liveness`).

    Raises:
      ValueError: the settings are incomplete or contradict each other, or the others cannot be reached.
    """
    coordinator, count, index = resolve(config, os.environ)
    if coordinator is None:
        if not (_is_on_tpu() if config.detect is None else config.detect):
            return
        ask = ClusterEnv.auto_detect_unset_distributed_params
        coordinator, count, index, _ = ask(None, None, None, None, None, _CLUSTER_SECONDS)
    try:
        if coordinator is not None and count is not None and index is not None and count > 1:
            connect(coordinator, count, index)
        jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError) as err:
        raise ValueError(
            f"the processes of the run could not be joined ({err}); check --processes.coordinator ({coordinator}), "
            "that every process was started, and that the port is free and open."
        ) from err


def resolve(config: ProcessConfig, environment: Mapping[str, str]) -> tuple[str | None, int | None, int | None]:
    """Returns coordinator, number of processes and index, each from its flag or else from the environment.

    Either all three are given or none.

    Raises:
      ValueError: some are missing, not numbers, or out of range.
    """
    coordinator = config.coordinator or environment.get(COORDINATOR)
    count = _number(config.count, NUM_PROCESSES, environment)
    index = _number(config.index, PROCESS_ID, environment)
    given = {"coordinator": coordinator, "count": count, "index": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None, None, None
    if coordinator is None or count is None or index is None:
        raise ValueError(
            f"processes.{missing[0]} is not given, but {', '.join(given.keys() - set(missing))} is; give all of "
            f"--processes.coordinator HOST:PORT, --processes.count and --processes.index, or the variables "
            f"{COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID}."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"processes.coordinator={coordinator!r} is no address; give HOST:PORT of process 0.")
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"processes.index={index} of processes.count={count}: the index counts from 0 to one less than the count."
        )
    return coordinator, count, index


def _number(value: int | None, variable: str, environment: Mapping[str, str]) -> int | None:
    if value is not None or variable not in environment:
        return value
    try:
        return int(environment[variable])
    except ValueError as err:
        raise ValueError(f"the variable {variable}={environment[variable]!r} is not a number.") from err


def leave_out_absent_tpu() -> None:
    """Lets JAX run on the CPU of a machine that has the package libtpu, which plans need, but neither TPU nor GPU.

    Otherwise JAX would look for a TPU first and fill stderr with complaints. A choice that the user made stands.
    """
    absent = not any(Path(file).exists() for file in (*_TPU_FILES, _GPU_FILE))
    if absent and not _platforms() and importlib.util.find_spec("libtpu") is not None:
        jax.config.update("jax_platforms", "cpu")


def _is_on_tpu() -> bool:
    """Whether JAX will use TPUs of a Cloud TPU machine. This does not start them."""
    platforms = _platforms()
    return (
        (not platforms or "tpu" in platforms.split(","))
        and importlib.util.find_spec("libtpu") is not None
        and "TPU_SKIP_MDS_QUERY" not in os.environ
        and any(Path(file).exists() for file in _TPU_FILES)
    )


def _platforms() -> str | None:
    # JAX adds its settings to this object at run time, where a type checker can't see them.
    return jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]


def wait(event: str) -> None:
    """Returns when every process has come here. ``event`` names the place; all processes must give the same."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in the order of the processes. JSON must be able to hold a value."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # A power of two, so that few lengths are ever compiled.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: data.size] = data
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def to_host(array: jax.Array) -> np.ndarray:
    """Copies a whole array to the host of every process, wherever its array shards lie."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


@contextlib.contextmanager
def raise_together(ask: Callable[[Any], list[Any]] = gather) -> Iterator[None]:
    """Raises an error about wrong input in every process if any process meets one in the block.

    So no process waits for one that has stopped.

    Args:
      ask: returns the values of all processes, as `gather` does.

    Raises:
      ValueError, OSError: the process's own error.
      ValueError: that of another process.
    """
    own: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as err:
        own = err
    problems = ask(None if own is None else str(own))
    if own is not None:
        raise own
    for index, problem in enumerate(problems):
        if problem is not None:
            raise ValueError(f"process {index}: {problem}")


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same folder.

    Raises:
      ValueError: this process does not see what process 0 wrote there.
    """
    if jax.process_count() == 1:
        return
    mark = folder / ".seen-by-all-processes"
    if jax.process_index() == 0:
        mark.touch()
    wait("mark written")
    seen = mark.exists()
    wait("mark read")
    if jax.process_index() == 0:
        mark.unlink()
    if not seen:
        raise ValueError(
            f"{folder} is not shared by all processes: what process 0 wrote there is missing in process "
            f"{jax.process_index()}; put it on a disk or mounted bucket that every host sees under this path."
        )
