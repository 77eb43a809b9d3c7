"""Rollouts: the model in training answers the prompts of the data, and its answers become batches.

Prompts (``prompts``) go to the engine (``sampler``); each answer with its prompt is a document (``rollout``), and the
documents are packed like those of the data (``layout``). ``batches`` is the iterator that the loop sees, ``held_out``
what validation answers.
"""

from train.rollouts.batches import RolloutBatches
from train.rollouts.held_out import HeldOutPrompts

__all__ = ["HeldOutPrompts", "RolloutBatches"]
