"""The sizes of an engine: what fits into memory, and what is compiled. A request's numbers depend on them alone."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig, TextConfig
from qwen35_jax.distributed import gather
from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import mesh_of, num_shards
from qwen35_jax.vision.patches import bucket_size

MOST_PATCHES = 65_536
"""Patches of the largest image, of 16,384 tokens, that the published processors make."""

# A window is unrolled in the program, and drafts so far ahead are hardly ever right.
_MOST_DRAFTS = 16
# Where a device does not say what memory it has, as a CPU does not.
_UNKNOWN_MEMORY = 4 << 30
# The share of the free memory that pages may take; the rest is for what the programs hold for a moment.
_SHARE_FOR_PAGES = 0.8


@dataclass(frozen=True)
class EngineSizes:
    """The sizes of an engine.

    Attributes:
      slots: of all data shards together.
      shards: data shards: devices, or groups of devices, with slots and pages of their own.
      num_pages: pages of one data shard, page 0 included, which is nobody's.
      page_size: tokens of a page.
      most_pages: pages that one request can have.
      chunk, small_chunk: tokens of a prompt that are read at once, and those of a short rest.
      num_drafts: drafts a step.
      steps_per_call: most steps between two looks of the host.
      draft_vocabulary: drafts are among the tokens below this id; None for all.
      most_patches, most_vectors: of the images and videos of one request, before and after the tower; 0 for an engine
        that reads text alone.
    """

    slots: int
    shards: int
    num_pages: int
    page_size: int
    most_pages: int
    chunk: int
    small_chunk: int
    num_drafts: int
    steps_per_call: int
    draft_vocabulary: int | None
    most_patches: int = 0
    most_vectors: int = 0

    @property
    def cache_tokens(self) -> int:
        """Tokens that all pages hold together."""
        return self.shards * (self.num_pages - 1) * self.page_size

    @classmethod
    def of(
        cls,
        model: Qwen35,
        *,
        slots: int,
        cache_tokens: int | None,
        speculative_tokens: int,
        page_size: int | None,
        prefill_chunk: int | None,
        steps_per_call: int,
        draft_vocabulary: int | None,
        most_patches: int | None = None,
        free_bytes: int | None = None,
    ) -> "EngineSizes":
        """Works the sizes out for a model on its devices; the other arguments are those of ``Engine``.

        Args:
          free_bytes: memory of a device beside the weights, by default what the device says.

        Raises:
          ValueError: a size is out of range, or the model cannot draft.
        """
        given = {"slots": slots, "cache_tokens": cache_tokens, "page_size": page_size, "prefill_chunk": prefill_chunk,
                 "steps_per_call": steps_per_call, "draft_vocabulary": draft_vocabulary}  # fmt: skip
        for name, size in given.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}; give at least 1.")
        _check_drafts(model, speculative_tokens, draft_vocabulary)
        most_patches, most_vectors = _checked_patches(model, most_patches)
        # A plan's model has a shape in the place of this array.
        weight, text = model.embed_tokens.weight.get_value(), model.config.text
        mesh = mesh_of(weight)
        shards, lengths = (1 if mesh is None else num_shards(axis, mesh) for axis in ("batch", "length"))
        if lengths > 1:
            raise ValueError(
                f"the model's mesh has context={lengths}, but one token at a time cannot be split over positions; "
                "load the model on a mesh with context=1."
            )
        on_cpu = next(iter(weight.sharding.device_set)).platform == "cpu"
        page_size = page_size or (64 if on_cpu else 256)
        chunk = prefill_chunk or (128 if on_cpu else 512)
        # In whole slots for every shard.
        slots = -(-slots // shards) * shards
        if cache_tokens is None:
            # All processes must make the same engine.
            free_bytes = min(gather(_free_bytes(model))) if free_bytes is None else free_bytes
            free_bytes -= bytes_of_vision(model.config, jnp.dtype(model.dtype).itemsize, most_patches)
            cache_tokens = min(_fitting_tokens(model, mesh, free_bytes, slots, shards, speculative_tokens),
                               slots * text.max_position_embeddings)  # fmt: skip
        num_pages = max(-(-cache_tokens // (shards * page_size)), 1)
        most_pages = min(num_pages, -(-text.max_position_embeddings // page_size))
        small_chunk = max(chunk // 8, min(chunk, 16))
        return cls(slots, shards, num_pages + 1, page_size, most_pages, chunk, small_chunk, speculative_tokens,
                   steps_per_call, draft_vocabulary, most_patches, most_vectors)  # fmt: skip


def _check_drafts(model: Qwen35, speculative_tokens: int, draft_vocabulary: int | None) -> None:
    if not 0 <= speculative_tokens <= _MOST_DRAFTS:
        raise ValueError(f"speculative_tokens={speculative_tokens}; give 0 to {_MOST_DRAFTS}.")
    if speculative_tokens and model.mtp is None:
        raise ValueError(
            f"speculative_tokens={speculative_tokens}, but the model has no MTP head to draft with; give 0, or load a "
            "checkpoint that holds mtp.* tensors."
        )
    if draft_vocabulary is not None and draft_vocabulary > model.config.text.vocab_size:
        raise ValueError(
            f"draft_vocabulary={draft_vocabulary}, but the model knows {model.config.text.vocab_size} tokens; give at "
            "most so many, or None for all."
        )


def _checked_patches(model: Qwen35, most_patches: int | None) -> tuple[int, int]:
    """Returns the size of the largest program of the tower, and how many vectors it makes; 0 and 0 without a tower."""
    if model.vision is None:
        if most_patches:
            raise ValueError(
                f"most_patches={most_patches}, but the model has no vision tower; give 0, or load a checkpoint that "
                "has one, with vision=True."
            )
        return 0, 0
    most_patches = MOST_PATCHES if most_patches is None else most_patches
    if most_patches < 0:
        raise ValueError(f"most_patches={most_patches}; give at least 0.")
    most_patches = bucket_size(most_patches) if most_patches else 0
    return most_patches, most_patches // model.vision.config.spatial_merge_size**2


def bytes_of_token(text: TextConfig, itemsize: int, *, drafts: bool, tensor: int = 1) -> int:
    """Returns the bytes of one token's keys and values in all layers; over all devices that share out heads."""
    layers = text.num_periods + drafts
    return layers * 2 * max(text.num_key_value_heads, tensor) * text.head_dim * itemsize


def bytes_of_slot(text: TextConfig, itemsize: int, num_drafts: int) -> int:
    """Returns the bytes of a slot outside its pages: states, a window's inputs, and which tokens it has seen."""
    layers, heads, window = text.num_periods * (text.period - 1), text.linear_num_value_heads, num_drafts + 1
    state = heads * text.linear_key_head_dim * text.linear_value_head_dim * 4
    inputs = (text.linear_conv_kernel_dim - 1 + window) * text.conv_dim * itemsize
    replay = window * heads * ((text.linear_key_head_dim + text.linear_value_head_dim) * itemsize + 8)
    return layers * (state + inputs + replay) + 4 * text.vocab_size


def bytes_of_vision(config: ModelConfig, itemsize: int, most_patches: int) -> int:
    """Returns what the images and videos of requests take: kept and read vectors, and one run of the tower."""
    vision = config.vision
    if vision is None or not most_patches:
        return 0
    vectors = most_patches // vision.spatial_merge_size**2
    features = 2 * vectors * vision.out_hidden_size * (1 + len(vision.deepstack_visual_indexes)) * itemsize
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * itemsize
    # The residual stream, its norm, queries, keys, values and outputs; the hidden vectors of the MLP before and after.
    activations = (6 * vision.hidden_size + 2 * vision.intermediate_size) * itemsize
    return features + most_patches * (pixels + activations)


def _free_bytes(model: Qwen35) -> int:
    """Returns the memory of a device of this process that nothing holds."""
    device = next(device for device in model.head_weight().devices() if device.process_index == jax.process_index())
    stats = device.memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats and "bytes_limit" in stats else _UNKNOWN_MEMORY


def _fitting_tokens(model: Qwen35, mesh: Mesh | None, free: int, slots: int, shards: int, num_drafts: int) -> int:
    """Returns how many tokens the free memory holds beside the slots, over all shards."""
    text, itemsize = model.config.text, jnp.dtype(model.dtype).itemsize
    tensor = 1 if mesh is None else num_shards("heads", mesh)
    # Float32 logits of a window, a few times over.
    logits = 4 * 4 * (num_drafts + 1) * text.vocab_size // tensor
    beside = slots // shards * (bytes_of_slot(text, itemsize, num_drafts) + logits)
    token = bytes_of_token(text, itemsize, drafts=bool(num_drafts), tensor=tensor) // tensor
    return max(int(_SHARE_FOR_PAGES * free) - beside, 0) // token * shards
