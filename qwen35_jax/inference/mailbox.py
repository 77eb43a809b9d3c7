"""Events of an engine that nobody has fetched yet."""

from collections.abc import Iterable

from qwen35_jax.inference.requests import Event


class Mailbox:
    """Keeps the events of requests apart for those who wait for them; the others are for whoever asks."""

    def __init__(self):
        self._events: list[Event] = []
        self._reserved: set[int] = set()

    def reserve(self, numbers: Iterable[int]) -> None:
        """Keeps the events of these requests for ``take``."""
        self._reserved |= set(numbers)

    def release(self, numbers: Iterable[int]) -> None:
        """Ends ``reserve``, and forgets what is left of these requests."""
        self._reserved -= set(numbers)
        self.take(set(numbers))

    def put(self, event: Event) -> None:
        """Adds an event."""
        self._events.append(event)

    def take(self, numbers: set[int]) -> list[Event]:
        """Takes out the events of some requests."""
        taken = [event for event in self._events if event.id in numbers]
        self._events = [event for event in self._events if event.id not in numbers]
        return taken

    def take_free(self) -> list[Event]:
        """Takes out the events that are kept for nobody."""
        return self.take({event.id for event in self._events} - self._reserved)

    def __bool__(self) -> bool:
        """Whether there are events that are kept for nobody."""
        return any(event.id not in self._reserved for event in self._events)
