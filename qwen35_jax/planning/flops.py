"""How many floating-point operations the mathematics of a token takes.

These are "model FLOPs", the numerator of model FLOPs utilisation. They leave out what a backward pass computes again
and what a blocked algorithm adds. A multiplication and an addition are two operations.

The count includes products with weights (the output head once for each loss), attention, the delta rule and its
convolution. It leaves out norms, gates, activations, rotary angles, the softmax and the optimizer, which together are
below 1 % at any published size.

The delta rule counts in its recurrent form. For each token and value head, that form reads the state with the key,
writes to it, and reads it with the query: three products of ``key width x value width``. The chunked form, which
training runs, spends more.

Source: the convention of arXiv:2204.02311, appendix B, but with causal attention counted at its mean length.
"""

from dataclasses import dataclass

from qwen35_jax.config import LINEAR, ModelConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class _Work:
    """Operations of one token: products with weights, and products of activations with each other."""

    weights: float
    activations: float

    def __add__(self, other: "_Work") -> "_Work":
        return _Work(self.weights + other.weights, self.activations + other.activations)


def forward_flops_per_token(config: ModelConfig, *, sequence_length: int, mtp_steps: int = 0) -> float:
    """Returns the operations of one token of a forward pass that computes logits at every position.

    Args:
      sequence_length: tokens that attention looks over. A token attends to ``(sequence_length + 1) / 2`` of them on
        average. For documents packed into one sequence pass their mean length.
      mtp_steps: how often the multi-token-prediction head runs. Each time it computes logits.

    Raises:
      ValueError: the model has experts, or no such head, or an argument is out of range.
    """
    work = _forward(config, sequence_length, mtp_steps)
    return work.weights + work.activations


def training_flops_per_token(config: ModelConfig, *, sequence_length: int, adapters: bool, mtp_steps: int) -> float:
    """Returns the operations of one token of a forward and a backward pass, without recomputation.

    The backward pass of a product is two products, one for each factor. With ``adapters`` the weights are frozen, so
    one of the two is not computed. The adapters' own products, some thousandths at usual ranks, are left out.

    Args:
      sequence_length, mtp_steps: as in ``forward_flops_per_token``.

    Raises:
      ValueError: as in ``forward_flops_per_token``.
    """
    work = _forward(config, sequence_length, mtp_steps)
    return (2 if adapters else 3) * work.weights + 3 * work.activations


def vision_flops_per_patch(config: VisionConfig, *, frame_patches: int) -> float:
    """Returns the operations of one patch of a forward pass of the vision tower and its mergers.

    Args:
      frame_patches: patches of an image or of a frame of a video, to all of which a patch attends.
    """
    dim = config.hidden_size
    embedding = 2 * config.in_channels * config.temporal_patch_size * config.patch_size**2 * dim
    attention = 2 * 4 * dim**2 + 2 * 2 * dim * frame_patches
    block = attention + 2 * 2 * dim * config.intermediate_size
    joined = config.spatial_merge_size**2
    # Each merger reads the joined patches of a token once.
    merger = 2 * (joined * dim) * (joined * dim + config.out_hidden_size) / joined
    return embedding + config.depth * block + (1 + len(config.deepstack_visual_indexes)) * merger


def _forward(config: ModelConfig, sequence_length: int, mtp_steps: int) -> _Work:
    text = config.text
    if text.moe is not None or text.intermediate_size is None:
        raise ValueError(f"{config.architecture} has experts, whose work is not counted; use a dense size.")
    if sequence_length < 1 or mtp_steps < 0:
        raise ValueError(f"sequence_length={sequence_length}, mtp_steps={mtp_steps}; use at least 1 and 0.")
    if mtp_steps and not text.mtp.num_hidden_layers:
        raise ValueError(f"mtp_steps={mtp_steps}, but the model has no MTP head; use 0.")
    head = _Work(2 * text.vocab_size * text.hidden_size, 0)
    mlp = _Work(2 * 3 * text.hidden_size * text.intermediate_size, 0)
    full = _attention(text, sequence_length) + mlp
    total = head
    for kind in text.layer_types:
        total += _delta_rule(text) + mlp if kind == LINEAR else full
    join = _Work(2 * 2 * text.hidden_size**2, 0)
    for _ in range(mtp_steps):
        total += join + full + head
    return total


def _attention(text: TextConfig, sequence_length: int) -> _Work:
    width, key_width = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    # Queries, gates and the output are as wide as the query heads; keys and values as wide as theirs.
    weights = 2 * text.hidden_size * (3 * width + 2 * key_width)
    return _Work(weights, 2 * 2 * width * (sequence_length + 1) / 2)


def _delta_rule(text: TextConfig) -> _Work:
    heads = text.linear_num_value_heads
    # Queries, keys and values; the output gate and the output; the decay and the write strength of each head.
    weights = 2 * text.hidden_size * (text.conv_dim + 2 * text.value_dim + 2 * heads)
    convolution = 2 * text.linear_conv_kernel_dim * text.conv_dim
    state = 3 * 2 * heads * text.linear_key_head_dim * text.linear_value_head_dim
    return _Work(weights + convolution, state)
