"""Completes prompts that take much memory, such as images: each is made shortly before a slot is free for it."""

import collections
import itertools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prompts import Prompt
from qwen35_jax.inference.requests import Completion
from qwen35_jax.inference.sampling import SamplingParams

# Threads that make prompts; a processor opens the images of one in several threads of its own.
_PREPARING = 2


def generate_in_turn(
    engine: Engine,
    keys: Sequence[Hashable],
    prompt_of: Callable[[int], Prompt],
    on_finish: Callable[[int, Completion], None],
    *,
    sampling: Sequence[SamplingParams],
    max_new_tokens: Sequence[int],
    seed: Sequence[int],
) -> None:
    """Does what ``Engine.generate`` does. Nobody else may use the engine meanwhile.

    Twice as many requests as slots are with the engine, so that none is idle, and as many prompts as slots are ready.

    Args:
      keys: one a completion; neighbours with equal keys have one prompt.
      prompt_of: makes the prompt of a completion, in a thread; what ``Engine.read`` returned is not read again.
      on_finish: called as each completion finishes, with its place.
      sampling, max_new_tokens, seed: as in ``Engine.generate``, one a completion.

    Raises:
      ValueError: as ``prompt_of`` and ``Engine.submit`` do, when the turn of the prompt comes.
    """
    by_key = itertools.groupby(range(len(keys)), key=lambda place: keys[place])
    groups = collections.deque(list(group) for _, group in by_key)
    places: dict[int, int] = {}
    ready: collections.deque[tuple[list[int], Future[Prompt]]] = collections.deque()
    pool = ThreadPoolExecutor(_PREPARING, "media")
    try:
        while groups or ready or places:
            while groups and len(ready) < engine.slots:
                group = groups.popleft()
                ready.append((group, pool.submit(prompt_of, group[0])))
            while ready and len(places) < 2 * engine.slots:
                group, made = ready.popleft()
                for place in group:
                    how = {"sampling": sampling[place], "max_new_tokens": max_new_tokens[place], "seed": seed[place]}
                    places[engine.submit(made.result(), **how)] = place
            for event in engine.step():
                if event.completion is not None:
                    on_finish(places.pop(event.id), event.completion)
    finally:
        pool.shutdown(cancel_futures=True)
        for number in places:
            engine.abort(number)
