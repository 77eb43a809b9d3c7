"""What a live teacher adds to the plan of a run: its weights, and the program that makes its signal."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import Compiled, abstract_model, bytes_per_device, compile_abstract
from qwen35_jax.planning.published import find_config
from qwen35_jax.sharding import array_sharding
from train.config import Distillation, TeacherConfig, TrainConfig
from train.objectives.inputs import inputs_in
from train.setup import model_options
from train.signals.live import make_teach, without_mtp
from train.signals.store import Store
from train.teacher import check_same_vocabulary, check_sees_images


class PlannedTeacher(NamedTuple):
    """A teacher as a plan knows it: without its weights."""

    settings: TeacherConfig
    """With the width decided."""
    config: ModelConfig | None
    """Of a live teacher; None for a stored signal."""


class Teaching(NamedTuple):
    """What the teacher needs on one device."""

    bytes: int
    """Of its weights, where it has its own."""
    compiled: Compiled | None
    """The program that makes the signal; None for a stored one."""
    weights_in_program: int
    """What that program counts as weights of the teacher, in bytes."""


def plan_teacher(config: TrainConfig, student: ModelConfig) -> PlannedTeacher | None:
    """Finds the shape of a run's teacher; None without one.

    Raises:
      ValueError: no teacher is named, the vocabularies differ, or there is no such store.
    """
    objective = config.recipe.objective
    if not isinstance(objective, Distillation):
        return None
    settings = objective.teacher
    if settings.store is not None:
        return PlannedTeacher(settings.with_width(Store.open(settings.store).width), None)
    if not (settings.path or settings.own_base):
        raise ValueError("no teacher is named; give --teacher.path, such as Qwen/Qwen3.5-9B, or --teacher.own-base.")
    found = student if settings.own_base else find_config(settings.path, "teacher.path")
    check_same_vocabulary(settings.path, found, student)
    if config.recipe.data.vision is not None:
        check_sees_images(settings.path, found, student)
    return PlannedTeacher(settings.with_width(found.text.hidden_size), found)


def with_teacher(config: TrainConfig, teacher: PlannedTeacher | None) -> TrainConfig:
    """Returns the settings of a run with the width of its teacher."""
    objective = config.recipe.objective
    if teacher is None or not isinstance(objective, Distillation):
        return config
    return config.replace(objective=dataclasses.replace(objective, teacher=teacher.settings))


def head_shape(teacher: PlannedTeacher | None, vocab_size: int, mesh: Mesh) -> jax.ShapeDtypeStruct | None:
    """Returns shape and placement of the teacher's output head, for the signal ``hidden``."""
    if teacher is None or teacher.settings.signal != "hidden":
        return None
    assert teacher.settings.width is not None
    shape = (vocab_size, teacher.settings.width)
    return jax.ShapeDtypeStruct(
        shape, jnp.dtype(teacher.settings.dtype), sharding=array_sharding(("vocab", "embed"), shape, mesh)
    )


def compile_teaching(
    teacher: PlannedTeacher, config: TrainConfig, batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> Teaching:
    """Compiles the program of a live teacher for the devices of ``mesh``.

    Args:
      batch: the shapes of the student's batch.
    """
    if teacher.config is None:
        return Teaching(0, None, 0)
    settings, found, options = teacher.settings, teacher.config, model_options(config)
    if not settings.own_base:
        options |= {"dtype": settings.dtype, "param_dtype": settings.dtype}
    model = abstract_model(lambda: Qwen35(found, **options, rngs=nnx.Rngs(0)), mesh)
    graphdef, weights = nnx.split(without_mtp(model))
    teach = make_teach(graphdef, settings, mesh, chunk_tokens=config.layout.loss_chunk)
    compiled = compile_abstract(teach, weights, inputs_in(batch), mesh=mesh)
    counted = bytes_per_device(weights)
    return Teaching(0 if settings.own_base else counted, compiled, counted)
