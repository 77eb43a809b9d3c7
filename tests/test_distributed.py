"""How the processes of a run are found, without starting any; and which platform is left out."""

import importlib.util

import jax
import pytest

from qwen35_jax import distributed
from qwen35_jax.distributed import (
    ProcessConfig,
    check_shared,
    gather,
    join,
    leave_out_absent_tpu,
    raise_together,
    resolve,
)

VARIABLES = {"JAX_COORDINATOR_ADDRESS": "10.0.0.2:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.mark.parametrize(
    ("config", "environment", "want"),
    [
        (ProcessConfig(), {}, (None, None, None)),
        (ProcessConfig(), VARIABLES, ("10.0.0.2:1234", 4, 3)),
        (ProcessConfig(index=1), VARIABLES, ("10.0.0.2:1234", 4, 1)),
        (ProcessConfig("a:1", 2, 0), {}, ("a:1", 2, 0)),
    ],
)
def test_flags_come_before_the_environment(config, environment, want):
    assert resolve(config, environment) == want


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        (ProcessConfig("a:1", 2), {}, "processes.index is not given, but .*JAX_PROCESS_ID"),
        (ProcessConfig(count=2, index=0), {}, "processes.coordinator is not given"),
        (ProcessConfig("a", 2, 0), {}, "processes.coordinator='a' is no address"),
        (ProcessConfig("a:1", 2, 2), {}, "processes.index=2 of processes.count=2"),
        (ProcessConfig("a:1", 0, 0), {}, "processes.count=0"),
        (ProcessConfig(), VARIABLES | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID='x' is not a number"),
    ],
)
def test_incomplete_or_contradictory_settings(config, environment, message):
    with pytest.raises(ValueError, match=message):
        resolve(config, environment)


def test_one_process_joins_nothing(tmp_path, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    join(ProcessConfig(detect=False))
    assert gather({"a": [1]}) == [{"a": [1]}]
    check_shared(tmp_path)
    with pytest.raises(OSError, match="mine"), raise_together():
        raise OSError("mine")


@pytest.mark.parametrize("detect", [None, False])
def test_a_process_off_a_cloud_tpu_stays_alone(detect, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    join(ProcessConfig(detect=detect))
    assert gather("alone") == ["alone"]


@pytest.mark.parametrize(
    ("chosen", "device_file", "libtpu", "want"),
    [
        (None, False, True, "cpu"),
        (None, False, False, None),
        (None, True, True, None),
        ("tpu", False, True, "tpu"),
    ],
)
def test_an_installed_libtpu_without_a_tpu_is_left_out(tmp_path, monkeypatch, chosen, device_file, libtpu, want):
    file = tmp_path / "accel0"
    if device_file:
        file.touch()
    monkeypatch.setattr(distributed, "_TPU_FILES", (str(file),))
    monkeypatch.setattr(distributed, "_GPU_FILE", str(tmp_path / "nvidia0"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if libtpu else None)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", chosen)
    try:
        leave_out_absent_tpu()
        assert jax.config.jax_platforms == want
    finally:
        jax.config.update("jax_platforms", before)
