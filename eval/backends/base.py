"""What a backend is asked for, and what it gives."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eval.protocols import Mode, Style
from eval.samples import Reply
from eval.tasks.base import Document, Likelihood
from qwen35_jax.inference.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Request:
    """A response that is wanted.

    Attributes:
      style: chat or text.
      max_new_tokens: thinking included.
      seed: of sampling.
    """

    document: Document
    style: Style
    mode: Mode
    sampling: SamplingParams
    max_new_tokens: int
    seed: int


class Backend(Protocol):
    """Writes responses.

    Attributes:
      identity: what writes: weights, code and numbers, as far as they are known; as JSON.
      fingerprint: a digest of ``identity``, which every sample bears.
      template: identifies the chat template; None if it is not known.
      labels: what its results must be marked with, such as a setting that it ignores.
      generated_tokens: how many it has written so far, finished or not; may be read by another thread.
    """

    identity: dict[str, Any]
    fingerprint: str
    template: str | None
    labels: tuple[str, ...]

    @property
    def slots(self) -> int:
        """Most responses that are written at once."""
        ...

    @property
    def generated_tokens(self) -> int:
        """Tokens written so far."""
        ...

    def generate(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None]) -> None:
        """Writes all responses; ``on_reply`` is called with the place of each as it finishes, in any order."""
        ...

    def score(self, likelihoods: Sequence[Likelihood]) -> list[list[float]]:
        """Returns the log-likelihood of each choice of each document.

        Raises:
          ValueError: the backend cannot.
        """
        ...
