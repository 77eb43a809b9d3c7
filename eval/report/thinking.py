"""How long the samples thought."""

from collections.abc import Iterable
from typing import Any

from eval.lengths import lengths
from eval.samples import Sample


def thinking_lengths(samples: Iterable[Sample]) -> dict[str, Any] | None:
    """Returns the distribution of tokens before the first ``</think>``, in the form of ``lengths`` in results.json.

    A sample that never closed its thought counts with all its tokens.

    Args:
      samples: stored ones, whole or light.

    Returns:
      None where no sample is known to have closed a thought.
    """
    known = [sample for sample in samples if sample.get("close_positions") is not None]
    if not any(sample["close_positions"] for sample in known):
        return None
    return lengths([{**each, "num_tokens": (each["close_positions"] or [each["num_tokens"]])[0]} for each in known])
