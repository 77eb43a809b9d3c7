"""Adds low-rank adapters to layers, merges them into the weights, and counts their parameters.

A layer with an adapter computes ``x W + scale * dropout(x) A B``. The factors of a stacked layer have the stack as
first axis, like its weight. Letters: ``G`` periods, ``I`` input width, ``O`` output width, ``R`` rank.

Source: arXiv:2106.09685; arXiv:2312.03732 for the rank-stabilised scale; ``LoraLayer`` in peft for initial values.
"""

import functools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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

TreePath = tuple[str | int, ...]
Layer = Linear | Embedding

GROUPS = ("attention", "deltanet", "mlp", "embed", "mtp")
_GROUP_OF_BLOCK = {"self_attn": "attention", "linear_attn": "deltanet", "mlp": "mlp"}


@dataclass(frozen=True)
class LoraConfig:
    """The shape of an adapter, and the layers that get one.

    Attributes:
      alpha: the adapter's output is multiplied by ``alpha / rank``.
      rank_stabilized: multiply by ``alpha / sqrt(rank)`` instead.
      dropout: probability that an input of the adapter is dropped in training.
      targets: groups of layers: ``attention``, ``deltanet`` and ``mlp`` of the decoder, ``embed`` (look-ups of the
        token embedding), ``mtp`` (every linear layer of the MTP head).
    """

    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention", "deltanet", "mlp")

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"LoRA rank={self.rank}; it must be at least 1.")
        if self.alpha <= 0:
            raise ValueError(f"LoRA alpha={self.alpha}; it must be positive.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA dropout={self.dropout}; it must be at least 0 and below 1.")
        unknown = [target for target in self.targets if target not in GROUPS]
        if unknown or not self.targets:
            raise ValueError(f"LoRA targets={list(self.targets)}; choose at least one of {', '.join(GROUPS)}.")

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
    """Adds an adapter to every layer of the target groups; the model's outputs do not change yet.

    Factors are float32. They depend only on the seed and the layer's name. They are placed as their weights are, except
    that the rank is not split. The model remembers ``config`` as ``model.lora_config``.

    Returns:
      A line for each kind of module that got an adapter.

    Raises:
      ValueError: a target matches no layer of this model, or the model has adapters already.
    """
    check_without_adapters(model)
    layers = dict(all_layers(model))
    present = {group_of(path) for path in layers}
    for target in config.targets:
        if target not in present:
            raise ValueError(
                f"LoRA target {target!r} matches no layer of this model, which has "
                f"{', '.join(group for group in GROUPS if group in present)}; remove it from the targets."
            )
    chosen = {path: layer for path, layer in layers.items() if group_of(path) in config.targets}
    for path, layer in chosen.items():
        rng = np.random.default_rng([seed, zlib.crc32(".".join(map(str, path)).encode())])
        attach(layer, *_initial_factors(layer, config.rank, rng), config)
    model.lora_config = config
    return _matches(chosen)


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


def group_of(path: TreePath) -> str:
    """Returns the group that a layer belongs to."""
    if path[0] == "mtp":
        return "mtp"
    return "embed" if path[0] == "embed_tokens" else _GROUP_OF_BLOCK[str(path[-2])]


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


def _matches(chosen: dict[TreePath, Layer]) -> list[Match]:
    """Joins the layers of a period that have the same name and shape into lines, ordered by group."""
    counts: dict[tuple[str, str, tuple[int, int]], int] = {}
    sizes: dict[tuple[str, str, tuple[int, int]], int] = {}
    for path, layer in chosen.items():
        *stack, in_dim, out_dim = layer.weight.shape
        module = ".".join(map(str, path[2:] if path[0] == "layers" else path))
        kind = group_of(path), module, (in_dim, out_dim)
        counts[kind] = counts.get(kind, 0) + math.prod(stack)
        sizes[kind] = sizes.get(kind, 0) + sum(factor.size for factor in factors(layer))
    matches = [Match(*kind[:2], counts[kind], kind[2], sizes[kind]) for kind in counts]
    return sorted(matches, key=lambda match: GROUPS.index(match.group))
