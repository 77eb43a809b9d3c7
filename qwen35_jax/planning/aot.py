"""Compiles programs for TPUs on a machine that has none, from shapes alone.

This needs ``libtpu``, which brings the TPU compiler to any Linux machine: ``pip install -e '.[plan]'``.
"""

import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import named_sharding
from qwen35_jax.wording import did_you_mean

_CHIPS = ("v5e", "v5p", "v6e")
_NAME = re.compile(rf"({'|'.join(_CHIPS)}):\d+x\d+(x\d+)?")
_EXAMPLES = "v5e:1x1, v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x2 (v5p-16), v5p:2x2x4 (v5p-32)"
# Names of Google Cloud end in a number: of chips, or for a v5p of its cores, two a chip.
_GRIDS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")

# libtpu asks for these where it finds no TPU. The kind of host does not change what is compiled.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    # Several compilers may run at once: none of them holds a device.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Compiled(NamedTuple):
    """A program as the compiler left it, with figures for one device."""

    peak_bytes: int
    """The most HBM that is in use at a time: arguments, results and temporaries."""
    text: str | None
    """The optimised program, or None where it does not fit."""

    @property
    def fits(self) -> bool:
        return self.text is not None


def topology_devices(name: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice by its chips, such as ``v5e:2x4``.

    Raises:
      ValueError: the name is unknown, or libtpu is missing.
    """
    if not _NAME.fullmatch(name):
        nearest = did_you_mean(_with_grid(name), (f"{chip}:{grid}" for chip in _CHIPS for grid in _GRIDS))
        raise ValueError(f"topology {name!r} is unknown; give chip and grid, such as {_EXAMPLES}.{nearest}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("a plan needs the TPU compiler; install it with `pip install libtpu`.")
    # With libtpu at hand JAX would otherwise look for TPUs of this machine.
    jax.config.update("jax_platforms", "cpu")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as err:
        reason = str(err).splitlines()[0].partition(": ")[2]
        raise ValueError(f"topology {name!r} does not exist ({reason}); examples: {_EXAMPLES}.") from err


def _with_grid(name: str) -> str:
    """Returns the topology of a name of Google Cloud, such as ``v5litepod-8`` or ``v5p-16``; another as it is."""
    chip, dash, number = name.lower().replace("litepod", "e").rpartition("-")
    if not dash or not number.isdigit():
        return name
    chips = int(number) // 2 if chip == "v5p" else int(number)
    grids = (grid for grid in _GRIDS if grid.count("x") == (2 if chip == "v5p" else 1))
    fitting = next((grid for grid in grids if math.prod(map(int, grid.split("x"))) == chips), None)
    return f"{chip}:{fitting}" if fitting else name


def abstract_model(make: Callable[[], Qwen35], mesh: Mesh) -> Qwen35:
    """Returns the model that ``make`` builds, with shapes on ``mesh`` in the place of arrays.

    Call it outside the mesh's context, because there are no devices to hold what ``make`` draws.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))

    def place(variable: nnx.Variable) -> nnx.Variable:
        sharding = named_sharding(variable, mesh)
        return variable.replace(jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding))

    return nnx.merge(graphdef, jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def compile_abstract(function: jax.stages.Wrapped, *arguments, mesh: Mesh, **named) -> Compiled:
    """Compiles a jitted function for the devices of ``mesh``. A program that does not fit is no error here."""
    with jax.set_mesh(mesh):
        lowered = function.lower(*arguments, **named)
    with tempfile.TemporaryDirectory() as dump:
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as err:
            used = _OUT_OF_MEMORY.search(str(err))
            if used is None:
                raise
            return Compiled(round(float(used[1]) * _UNITS[used[2]]), None)
        memory = compiled.memory_analysis()
        assert memory is not None, "the TPU compiler says what memory a program needs"
        return Compiled(memory.peak_memory_in_bytes, _print(compiled, Path(dump)))


def _print(compiled: jax.stages.Compiled, dump: Path) -> str:
    """Returns the optimised program. The compiler's own dump goes first: ``as_text`` fails on SparseCore gathers."""
    for path in dump.glob("*.after_codegen.txt"):
        return path.read_text()
    text = compiled.as_text()
    assert text is not None, "a compiled program has a text"
    return text


def bytes_per_device(tree) -> int:
    """Adds up the part of every array that one device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
