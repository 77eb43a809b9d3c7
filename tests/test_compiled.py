"""Compiled programs are kept for the next start, give the same numbers, and are never in the way."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax import monitoring
from qwen35_jax.compiled import keep_compiled_programs

found = []
monitoring.register_event_listener(lambda event, **_: found.append(event) if event.endswith("cache_hits") else None)
folder = keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
x = jax.random.normal(jax.random.key(0), (64, 64))
y = jax.jit(lambda x: jnp.linalg.norm(jax.nn.softmax(x @ x) @ x))(x)
print(json.dumps({"folder": folder and str(folder), "hits": len(found), "value": y.item().hex()}))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the program with its user's cache in ``tmp_path`` and returns what it printed."""

    def start(**variables):
        env = {name: value for name, value in os.environ.items() if "CACHE" not in name}
        env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPO)} | variables
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return start


def test_the_second_start_finds_what_the_first_compiled(start, tmp_path):
    first, second = start(), start()
    folder = tmp_path / "cache" / "qwen35-jax" / "compiled"
    assert first["folder"] == second["folder"] == str(folder)
    assert first["hits"] == 0 < second["hits"]
    assert first["value"] == second["value"]
    # As a kill while an entry is written leaves them: the program is compiled again.
    for entry in folder.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    third = start()
    assert third["hits"] < second["hits"] and third["value"] == first["value"]


def test_settings_of_jax_win(start, tmp_path):
    own = tmp_path / "own"
    assert start(JAX_COMPILATION_CACHE_DIR=str(own))["folder"] is None
    assert list(own.glob("*-cache")) and not (tmp_path / "cache").exists()
    assert start(JAX_ENABLE_COMPILATION_CACHE="false")["folder"] is None
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_error(start, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert start()["folder"] is None
