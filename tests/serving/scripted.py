"""An engine that writes what a test tells it to, for what a random model never writes: thoughts, answers, calls."""

import dataclasses
import itertools
import types

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.metrics import Metrics
from qwen35_jax.inference.requests import Completion, Event, StreamedToken
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.thinking import ThinkingStream, opens_thinking


class ScriptedEngine(Engine):
    """Writes a text after every prompt, ``speed`` tokens a step in each of its slots.

    Args:
      text: what it writes; without an end token a completion runs to its limit, from the start again and again.
      reason: how a completion ends whose text has ended.
    """

    # Plain values here, and properties of an engine.
    slots = max_length = model = metrics = num_pages = num_free_pages = None

    def __init__(self, tokenizer, text, *, slots=4, speed=3, max_length=2000, reason="stop"):
        self.tokenizer, self.slots, self.max_length = tokenizer, slots, max_length
        text_config = dataclasses.replace(PRESETS["tiny"].text, vocab_size=len(tokenizer) + 20)
        config = dataclasses.replace(PRESETS["tiny"], text=text_config)
        self.model = types.SimpleNamespace(config=config)
        self.script, self.speed, self.reason = tokenizer.encode(text), speed, reason
        self.metrics, self.num_pages, self.num_free_pages = Metrics(), 10, 10
        self.submitted, self.aborted, self.steps = [], [], 0
        self.hold = lambda: None
        self._names = itertools.count()
        self._running, self._waiting = {}, {}

    @property
    def has_work(self):
        return bool(self._running or self._waiting)

    @property
    def num_free_slots(self):
        return self.slots - len(self._running)

    @property
    def num_waiting(self):
        return len(self._waiting)

    def check(self, prompts, max_new_tokens, sampling):
        for number, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {number} has no tokens")

    def submit(self, prompt, **settings):
        if max(prompt, default=0) >= len(self.tokenizer):
            raise ValueError(f"the prompt holds token {max(prompt)}; give tokens below {len(self.tokenizer)}.")
        self.submitted.append((prompt, settings))
        name = next(self._names)
        self._waiting[name] = _Request(self, prompt, settings)
        return name

    def step(self):
        self.hold()
        self.steps += 1
        while self._waiting and len(self._running) < self.slots:
            name = next(iter(self._waiting))
            self._running[name] = self._waiting.pop(name)
        events = [request.write(name) for name, request in self._running.items()]
        for event in events:
            if event.completion:
                del self._running[event.id]
        return events

    def abort(self, name):
        request = self._running.pop(name, None) or self._waiting.pop(name, None)
        if request is None:
            return None
        self.aborted.append(name)
        return Event(name, (), request.completion("aborted"))


class _Request:
    def __init__(self, engine, prompt, settings):
        self.engine, self.prompt, self.settings = engine, prompt, settings
        self.ids = []
        self.stream = ThinkingStream(engine.tokenizer, opened=opens_thinking(engine.tokenizer, prompt))

    def completion(self, reason):
        return Completion.from_tokens(self.engine.tokenizer, self.prompt, list(self.ids), reason)

    def write(self, name):
        tokens, reason = [], None
        while len(tokens) < self.engine.speed and reason is None:
            self.ids.append(self.engine.script[len(self.ids) % len(self.engine.script)])
            reason = self.reason()
            section, text = self.stream.push(self.ids[-1])
            if reason:
                section, last = self.stream.flush()
                text += last
            tokens.append(StreamedToken(self.ids[-1], section, text))
        return Event(name, tuple(tokens), reason and self.completion(reason))

    def reason(self):
        if self.ids[-1] in self.engine.tokenizer.eos_token_ids:
            return self.engine.reason
        return "length" if len(self.ids) == self.settings["max_new_tokens"] else None
