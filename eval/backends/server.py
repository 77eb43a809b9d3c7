"""An OpenAI-compatible server as a backend."""

from collections.abc import Callable, Sequence

from eval.backends.base import Request
from eval.config import EvalConfig
from eval.samples import Reply
from eval.tasks.base import Likelihood


class ServerBackend:
    """Lets a server answer."""

    fingerprint: str
    template: str | None = None
    labels: tuple[str, ...] = ()

    def __init__(self, config: EvalConfig):
        raise NotImplementedError

    @property
    def generated_tokens(self) -> int:
        """Tokens written so far."""
        raise NotImplementedError

    def generate(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None]) -> None:
        """Writes all responses."""
        raise NotImplementedError

    def score(self, likelihoods: Sequence[Likelihood]) -> list[list[float]]:
        """Refuses: no server gives the log-likelihood of a given text."""
        raise ValueError("a server does not score choices; give --style chat or text.")
