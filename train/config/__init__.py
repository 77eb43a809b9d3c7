"""The settings of a training run: frozen dataclasses, checked when they are built.

A run file in ``configs/`` returns a `TrainConfig`; the command line overrides its fields by dotted name, such as
``--data.path``. What needs a file or a device is checked by ``train.run`` before anything compiles. A setting belongs
into one of three classes, which say what becomes of it when a run resumes with another value:

- ``Recipe`` (recipe.py): it decides the numbers, so the run is refused;
- ``Layout`` (layout.py): it changes only the last digits, so there is a warning;
- ``Options`` (options.py): it says how a run is operated, so any value will do.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from qwen35_jax.best import PREFIX, Goal
from qwen35_jax.distributed import ProcessConfig
from qwen35_jax.lora import LoraConfig
from train.config.data import DataConfig, Source
from train.config.health import HealthConfig
from train.config.layout import Layout, MeshConfig
from train.config.optim import OptimConfig
from train.config.options import CheckpointConfig, EarlyStopConfig, Options, SamplesConfig, parse_steps
from train.config.recipe import ModelSource, Recipe
from train.config.vision import VisionDataConfig
from train.objectives.distill import Distillation, MtpDistillConfig
from train.objectives.mtp import MtpLossConfig
from train.objectives.rollouts import OF_ROLLOUTS, RolloutConfig
from train.objectives.sft import Supervised
from train.objectives.teacher import TeacherConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "Distillation",
    "EarlyStopConfig",
    "HealthConfig",
    "Layout",
    "LoraConfig",
    "MeshConfig",
    "ModelSource",
    "MtpDistillConfig",
    "MtpLossConfig",
    "OptimConfig",
    "Options",
    "ProcessConfig",
    "Recipe",
    "RolloutConfig",
    "SamplesConfig",
    "Source",
    "Supervised",
    "TeacherConfig",
    "TrainConfig",
    "VisionDataConfig",
]

# Flags do not name the three classes: it is ``--steps``, not ``--recipe.steps``.
_UNNAMED = tyro.conf.arg(name="")
_HOW_TO_ADD = {
    "lora": ("adapters", "add --tune lora"),
    "rollouts": ("rollouts", "docs/distillation.md shows how to add them to a run file"),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run."""

    recipe: Annotated[Recipe, _UNNAMED]
    layout: Annotated[Layout, _UNNAMED] = field(default_factory=Layout)
    options: Annotated[Options, _UNNAMED] = field(default_factory=Options)

    def __post_init__(self):
        steps, profile = self.recipe.steps, self.options.profile
        if profile is not None and steps is not None and parse_steps(profile)[-1] > steps:
            raise ValueError(f"profile={profile!r} goes beyond the last step; end it by steps={steps}.")

        self._check_evaluation()
        objective = self.recipe.objective
        if isinstance(objective, Distillation) and objective.rollouts is not None:
            objective.rollouts.check_data(self.recipe.data)
            objective.rollouts.check_mesh(self.layout.mesh, self.recipe.data)

    def _check_evaluation(self) -> None:
        """Checks that there is something to evaluate where the settings speak of evaluations."""
        options = self.options
        evaluates = self.recipe.data.validates or options.evaluate is not None
        if options.evaluate_every is not None and not evaluates:
            raise ValueError(
                f"evaluate_every={options.evaluate_every}, but there is nothing to evaluate; give validation data with "
                "--data.eval-path FILE or --data.eval-fraction 0.02, or a function `evaluate` in the run file."
            )
        best_by = options.checkpoint.best_by
        if best_by is None or options.evaluate is not None:
            # What a function returns is known once it was called.
            return
        objective = self.recipe.objective
        terms = objective.make(loss_chunk=self.layout.loss_chunk, remat=self.layout.remat, validates=True).weights
        known = [f"{PREFIX}{term}" for term in terms] if evaluates else []
        if evaluates and isinstance(objective, Distillation) and objective.validates_rollouts:
            known += [f"{PREFIX}{OF_ROLLOUTS}{term}" for term in terms]
        if Goal.parse(best_by).metric not in known:
            raise ValueError(
                f"checkpoint.best_by={best_by!r} is no figure of this run; "
                + (f"choose one of {', '.join(known)}." if known else "give validation data, such as --data.eval-path.")
            )

    def before_overrides(self, argv: Sequence[str]) -> "TrainConfig":
        """Applies what decides which other options there are: ``--tune`` those of adapters, any of vision the others.

        Where ``--tune`` changes what trains, the learning rate of the run file is another kind's, and gives way to the
        default.

        Raises:
          ValueError: an option changes adapters or rollouts where there are none.
        """
        if self.recipe.data.vision is None and any(argument.startswith("--data.vision.") for argument in argv):
            with_vision = dataclasses.replace(self.recipe.data, vision=VisionDataConfig())
            return self.replace(data=with_vision).before_overrides(argv)
        words = [word for argument in argv for word in argument.split("=", 1)]
        given = words[words.index("--tune") + 1 :][:1] if "--tune" in words else []
        if given == [self.recipe.kind] or given not in (["full"], ["lora"]):
            self._check_absent(argv)
            return self
        tuned = self.replace(tune=given[0], optim=dataclasses.replace(self.recipe.optim, learning_rate=None))
        tuned._check_absent(argv)
        return tuned

    def _check_absent(self, argv: Sequence[str]) -> None:
        parts = {"lora": self.recipe.lora, "rollouts": getattr(self.recipe.objective, "rollouts", None)}
        for name, (what, remedy) in _HOW_TO_ADD.items():
            typed = next((word.partition("=")[0] for word in argv if word.startswith(f"--{name}.")), None)
            if typed is not None and parts[name] is None:
                raise ValueError(f"this run has no {what}, so that {typed} changes nothing; {remedy}.")

    def replace(self, **changes: Any) -> "TrainConfig":
        """Returns these settings with other values for some fields of recipe, layout or options."""
        changed = {}
        for name in ("recipe", "layout", "options"):
            settings = getattr(self, name)
            own = {each.name for each in dataclasses.fields(settings)} & changes.keys()
            changed[name] = dataclasses.replace(settings, **{each: changes.pop(each) for each in own})
        if changes:
            raise ValueError(f"{', '.join(changes)}: no such field in recipe, layout or options.")
        return TrainConfig(**changed)
