"""Adds low-rank adapters to layers, merges them into the weights, and counts their parameters.

A layer with an adapter computes ``x W + scale * dropout(x) A B``. The factors of a stacked layer have the stack as
first axis, like its weight. Letters: ``G`` periods, ``I`` input width, ``O`` output width, ``R`` rank.

Source: arXiv:2106.09685; arXiv:2312.03732 for the rank-stabilised scale; ``LoraLayer`` in peft for initial values.
"""

import functools
import math
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from qwen35_jax.layers.embedding import Embedding
from qwen35_jax.layers.linear import Linear
from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import Axes, named_sharding
from qwen35_jax.targets import ALL_LINEAR, GROUPS, Module, check_words, choose, describe

TreePath = tuple[str | int, ...]
Layer = Linear | Embedding
Place = tuple[TreePath, tuple[int, ...]]
"""A layer of the tree, and the position in its stack if it has one."""


@dataclass(frozen=True)
class LoraConfig:
    """The shape of an adapter, and the layers that get one.

    Attributes:
      alpha: the adapter's output is multiplied by ``alpha / rank``.
      rank_stabilized: multiply by ``alpha / sqrt(rank)`` instead.
      dropout: probability that an input of the adapter is dropped in training.
      targets: layers that get an adapter: groups (attention, deltanet, mlp, embed, mtp, tower, merger), all-linear,
        names of modules such as q_proj, or regular expressions for whole names. See ``qwen35_jax.targets``.
      exclude: layers that get none all the same, named in the same ways.
    """

    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("targets", "exclude"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            check_words(getattr(self, name), f"lora.{name}")
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora.alpha={self.alpha} must be positive and finite.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout} must be at least 0 and below 1.")
        if not self.targets:
            raise ValueError(f"lora.targets is empty; name modules, or one of {', '.join((*GROUPS, ALL_LINEAR))}.")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclass(frozen=True)
class Match:
    """One line of the table of adapted modules: ``count`` weights of one name and shape (in, out)."""

    group: str
    module: str
    count: int
    shape: tuple[int, int]
    parameters: int


def add(model: Qwen35, config: LoraConfig, seed: int) -> list[Match]:
    """Adds an adapter to every layer that is chosen; the model's outputs do not change yet.

    Factors are float32. They depend only on the seed and the layer's name. They are placed as their weights are, except
    that the rank is not split. Where only some layers of a stack are chosen, both factors of the others are zero. So
    are then their gradients, and they stay zero. The model remembers ``config`` as ``model.lora_config``.

    Returns:
      A line for each kind of module that got an adapter.

    Raises:
      ValueError: a word of the settings matches no layer of this model, or the model has adapters already.
    """
    check_without_adapters(model)
    layers, chosen = dict(all_layers(model)), choose_layers(model, config)
    for path in dict.fromkeys(path for path, _ in chosen):
        layer = layers[path]
        rng = np.random.default_rng([seed, zlib.crc32(".".join(map(str, path)).encode())])
        lora_a, lora_b = _initial_factors(layer, config.rank, rng)
        for index in _positions(layer):
            if (path, index) not in chosen:
                lora_a[index], lora_b[index] = 0, 0
        attach(layer, lora_a, lora_b, config)
    model.lora_config = config
    return table(model)


def table(model: Qwen35) -> list[Match]:
    """Joins the places with an adapter that have the same name and shape into lines, ordered by group."""
    config: LoraConfig = model.lora_config
    layers, modules = dict(all_layers(model)), dict(all_modules(model))
    counts: dict[tuple[str, str, tuple[int, int]], int] = {}
    for path, index in choose_layers(model, config):
        in_dim, out_dim = layers[path].weight.shape[-2:]
        name = ".".join(map(str, path[2:] if path[0] == "layers" else path))
        kind = modules[path, index].group, name, (in_dim, out_dim)
        counts[kind] = counts.get(kind, 0) + 1
    matches = [Match(*kind[:2], count, kind[2], count * config.rank * sum(kind[2])) for kind, count in counts.items()]
    return sorted(matches, key=lambda match: GROUPS.index(match.group))


def set_dropout(model: Qwen35, dropout: float) -> None:
    """Sets the dropout of all adapters."""
    for _, layer in adapted_layers(model):
        layer.lora_dropout = dropout
    model.lora_config = replace(model.lora_config, dropout=dropout)


def choose_layers(model: Qwen35, config: LoraConfig) -> list[Place]:
    """Returns what the settings choose of a model, of arrays or of shapes, in the model's order.

    Raises:
      ValueError: a word of them matches no layer of this model.
    """
    modules = dict(all_modules(model))
    found = choose(modules, config.targets, config.exclude, option="lora.targets", excluding="lora.exclude")
    return [place for place in modules if place in found]


def settings_for(model: Qwen35, places: Collection[tuple[TreePath, tuple[Any, ...]]], **settings: Any) -> LoraConfig:
    """Returns settings that choose these places; ``settings`` are the other fields."""
    targets, exclude = describe(dict(all_modules(model)), places)
    return LoraConfig(targets=targets, exclude=exclude, **settings)


def attach(
    layer: Layer, lora_a: Float[np.ndarray, "*G I R"], lora_b: Float[np.ndarray, "*G R O"], config: LoraConfig
) -> None:
    """Places two factors, which lie on the host, as the layer's weight is placed, and gives them to the layer."""
    *stack, in_axis, out_axis = layer.weight.get_metadata("logical_axes")
    layer.lora_a = _placed(lora_a, (*stack, in_axis, "rank"), layer)
    layer.lora_b = _placed(lora_b, (*stack, "rank", out_axis), layer)
    layer.lora_scale, layer.lora_dropout = config.scale, config.dropout


def merge(model: Qwen35) -> None:
    """Folds every adapter into its weight, in float32, and removes it.

    Raises:
      ValueError: the embedding of a tied model is adapted.
    """
    check_mergeable(model)
    for _, layer in list(adapted_layers(model)):
        layer.weight.set_value(merged_weight(layer).astype(layer.weight.dtype))
        layer.lora_a = layer.lora_b = nnx.data(None)
        layer.lora_scale = layer.lora_dropout = 0.0
    model.lora_config = None


def check_without_adapters(model: Qwen35) -> None:
    """Raises ``ValueError`` if the model has adapters."""
    if next(adapted_layers(model), None) is not None:
        raise ValueError("the model has adapters already; merge them (lora.merge) before adding others.")


def check_mergeable(model: Qwen35) -> None:
    """Raises ``ValueError`` if a merge would change a tied output head, which the adapter leaves as it is."""
    if model.lm_head is None and model.embed_tokens.lora_a is not None:
        raise ValueError(
            "the adapter of the embedding cannot be merged: the output head is tied to it and would change too; "
            "export the adapter instead, or train without the target 'embed'."
        )


def merged_weight(layer: Layer, index: tuple[int | slice, ...] = ()) -> Float[Array, "*G I O"]:
    """Returns ``(W + scale * A B)[index]`` in float32.

    Args:
      index: positions in the stack first, which are chosen before the product, then slices of the weight's own axes.
    """
    num_positions = sum(isinstance(entry, int) for entry in index)
    positions, inside = index[:num_positions] or ..., index[num_positions:]
    merged = _merge(*(array[positions] for array in (layer.weight[...], *factors(layer))), layer.lora_scale)
    return merged[inside] if inside else merged


def factors(layer: Layer) -> tuple[Float[Array, "*G I R"], Float[Array, "*G R O"]]:
    """Returns the two factors of a layer that carries an adapter."""
    assert layer.lora_a is not None and layer.lora_b is not None, f"{layer.name} carries no adapter"
    return layer.lora_a[...], layer.lora_b[...]


def count(model: Qwen35) -> int:
    """Returns the number of adapter parameters."""
    return sum(factor.size for _, layer in adapted_layers(model) for factor in factors(layer))


def all_layers(model: Qwen35) -> Iterator[tuple[TreePath, Layer]]:
    """Yields every layer that can carry an adapter, with its path in the tree."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, (Linear, Embedding)):
            yield tree_path(path), module


def tree_path(path: tuple[Any, ...]) -> TreePath:
    """Returns a path that nnx gives as names and positions."""
    return tuple(key if isinstance(key, int) else str(key) for key in path)


def adapted_layers(model: Qwen35) -> Iterator[tuple[TreePath, Layer]]:
    """Yields every layer that carries an adapter, with its path in the tree."""
    return ((path, layer) for path, layer in all_layers(model) if layer.lora_a is not None)


def all_modules(model: Qwen35) -> Iterator[tuple[Place, Module]]:
    """Yields every place that can carry an adapter, with its name in the checkpoint.

    No pattern takes the embedding: its adapter leaves a tied output head as it is, so it cannot be merged.
    """
    for path, layer in all_layers(model):
        for index in _positions(layer):
            name = checkpoint_name(path, index, period=len(model.layers))
            yield (path, index), Module(name, takes_patterns=not isinstance(layer, Embedding))


def is_stacked(path: TreePath) -> bool:
    """Whether the first axis of the parameters at this path of the tree is a stack of layers."""
    return path[0] == "layers" or path[:2] == ("vision", "blocks")


def checkpoint_name(path: TreePath, index: tuple[int, ...], *, period: int) -> str:
    """Names what lies at a path of the tree, at a position of its stack, as the checkpoint does (see ``Module``)."""
    if path[0] == "layers":
        assert isinstance(path[1], int)
        path = ("layers", period * index[0] + path[1], *path[2:])
    elif path[0] == "vision":
        path = ("visual", path[1], *index, *path[2:])
    return ".".join(map(str, path))


@functools.partial(jax.jit, static_argnums=3)
def _merge(weight, lora_a, lora_b, scale):
    product = jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
    return weight.astype(jnp.float32) + scale * product


def _initial_factors(layer: Layer, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the factors on the host, where many shapes cost no compilation."""
    *stack, in_dim, out_dim = layer.weight.shape
    shapes = (*stack, in_dim, rank), (*stack, rank, out_dim)
    if isinstance(layer, Embedding):
        return np.zeros(shapes[0], np.float32), rng.standard_normal(shapes[1], np.float32)
    # torch's default for linear layers, kaiming_uniform(a=sqrt(5)), written out.
    bound = in_dim**-0.5
    return rng.uniform(-bound, bound, shapes[0]).astype(np.float32), np.zeros(shapes[1], np.float32)


def _placed(value: np.ndarray, axes: Axes, layer: Layer) -> nnx.LoRAParam:
    param, weight = nnx.LoRAParam(jnp.asarray(value), logical_axes=axes), layer.weight[...]
    traced = isinstance(weight, jax.core.Tracer)  # shapes only, for a plan: nothing to place
    if traced or not isinstance(weight.sharding, NamedSharding):
        param.set_value(jnp.asarray(value))
    else:
        mesh = weight.sharding.mesh
        assert isinstance(mesh, Mesh), "arrays lie on a mesh of devices"
        param.set_value(jax.device_put(value, named_sharding(param, mesh)))
    return param


def _positions(layer: Layer) -> list[tuple[int, ...]]:
    """Lists the positions in the stack of a layer; the only one of a layer that stands alone is ``()``."""
    return list(np.ndindex(*layer.weight.shape[:-2]))
