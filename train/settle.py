"""Settles what the settings of a run leave open, by the model that it trains, and checks what would train."""

import dataclasses
import logging
from collections.abc import Collection
from typing import NamedTuple

from flax import nnx

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig, TextConfig
from qwen35_jax.hf.adapter import load_adapter
from qwen35_jax.lora import LoraConfig, Place
from qwen35_jax.model import Qwen35
from train.config import Distillation, Recipe, TrainConfig
from train.observe.notes import find_notes
from train.observe.warnings import LossWatch, high_rate
from train.state import choose_weights

logger = logging.getLogger(__name__)


class Settled(NamedTuple):
    """The settings of a run once its model is known."""

    config: TrainConfig
    model: TextConfig
    groups: set[str]
    """What trains, by groups of ``qwen35_jax.targets``."""


def settle(config: TrainConfig, model_config: ModelConfig) -> Settled:
    """Decides which adapters train, and checks what trains. No array is made. A second call changes nothing.

    Raises:
      ValueError: a word of the settings chooses nothing, what trains contradicts the objective, or the adapter to start
        from is of another kind than ``lora`` says.
      FileNotFoundError: there is no such adapter.
    """
    recipe, adapter = config.recipe, config.recipe.model.adapter

    def make() -> Qwen35:
        model = Qwen35(model_config, vision=recipe.data.vision is not None, rngs=nnx.Rngs(0))
        if adapter is not None:
            load_adapter(model, adapter)
        return model

    model = nnx.eval_shape(make)
    if adapter is not None:
        recipe = dataclasses.replace(recipe, lora=_as_adapter(recipe.lora, model, adapter))
    recipe = dataclasses.replace(recipe, lora=recipe.trained_lora)
    if recipe.lora is None:
        trained = choose_weights(model, recipe.train, train_mtp=recipe.objective.trains_mtp)
        groups, option = {weight.group for weight in trained.values()}, "train"
    else:
        groups, option = _groups(model, lora.choose_layers(model, recipe.lora)), "lora.targets"
    recipe.objective.check_trained(groups, option=option)
    return Settled(dataclasses.replace(config, recipe=recipe), model_config.text, groups)


def announce(given: Recipe, settled: Settled) -> TrainConfig:
    """Logs how the run trains and what is to be warned of, and returns the settings with every default decided.

    Args:
      given: what the user set.
    """
    config = dataclasses.replace(settled.config, recipe=settled.config.recipe.decide())
    has_head = settled.model.mtp.num_hidden_layers > 0
    for note in find_notes(given, config.recipe, settled.groups, has_mtp_head=has_head):
        logger.info(note)
    for warning in high_rate(config.recipe, settled.model.hidden_size):
        logger.warning(warning)
    return config


def make_watch(recipe: Recipe, settled: Settled, main_term: str) -> LossWatch:
    """Makes what follows the loss of a run whose defaults are decided."""
    optim, objective, weights = recipe.optim, recipe.objective, {main_term: 1.0}
    if isinstance(objective, Distillation):
        # A student that learns labels too may move away from its teacher.
        weights = {main_term: objective.divergence_weight, "loss": objective.loss_weight}
    assert optim.learning_rate is not None, "the learning rate is decided"
    return LossWatch(
        vocab_size=settled.model.vocab_size,
        learning_rate=optim.learning_rate,
        warmup=optim.warmup_steps(recipe.num_steps),
        weights=weights,
    )


def load_start(model: Qwen35, recipe: Recipe) -> list[lora.Match]:
    """Adds the adapters of a settled recipe: new ones, or those of the adapter that it starts from.

    Returns:
      The table of what has adapters.
    """
    assert recipe.lora is not None
    if recipe.model.adapter is None:
        return lora.add(model, recipe.lora, recipe.seed)
    load_adapter(model, recipe.model.adapter)
    lora.set_dropout(model, recipe.lora.dropout)
    return lora.table(model)


def _groups(model: Qwen35, places: Collection[Place]) -> set[str]:
    modules = dict(lora.all_modules(model))
    return {modules[place].group for place in places}


def _as_adapter(wanted: LoraConfig | None, model: Qwen35, adapter: str) -> LoraConfig:
    """Returns the settings of the adapter that a model carries, with the dropout that the run wants.

    Raises:
      ValueError: the run wants other adapters than this one.
    """
    theirs = model.lora_config
    if wanted is None:
        return theirs
    flags = {
        "rank": f"--lora.rank {theirs.rank}",
        "alpha": f"--lora.alpha {theirs.alpha:g}",
        "rank_stabilized": f"--lora.{'' if theirs.rank_stabilized else 'no-'}rank-stabilized",
    }
    differs = [name for name in flags if getattr(wanted, name) != getattr(theirs, name)]
    problems = [f"lora.{name} is {getattr(wanted, name)}, there {getattr(theirs, name)}" for name in differs]
    remedy = [flags[name] for name in differs]
    if set(lora.choose_layers(model, wanted)) != set(lora.choose_layers(model, theirs)):
        problems.append(f"lora.targets={list(wanted.targets)} chooses other layers")
        remedy.append(" ".join(["--lora.targets", *theirs.targets]))
        if theirs.exclude or wanted.exclude:
            remedy.append(" ".join(["--lora.exclude", *theirs.exclude]))
    if problems:
        raise ValueError(f"model.adapter={adapter!r} is another adapter than lora says: {', '.join(problems)}; "
                         f"give {' '.join(remedy)}.")  # fmt: skip
    return dataclasses.replace(theirs, dropout=wanted.dropout)
