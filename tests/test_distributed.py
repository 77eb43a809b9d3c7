"""How the processes of a run are found, without starting any."""

import pytest

from qwen35_jax.distributed import ProcessConfig, check_shared, gather, join, raise_together, resolve

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
