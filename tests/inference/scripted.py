"""An engine whose answers are known, for tests of what is done with answers."""

import types
from collections.abc import Iterable

import numpy as np

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.metrics import Metrics
from qwen35_jax.inference.requests import Completion, Event, StreamedToken
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.thinking import ThinkingStream, opens_thinking
from qwen35_jax.processing.tokenizer import Tokenizer

END = "<|im_end|>"
SIZES = EngineSizes(
    slots=8, shards=1, num_pages=9, page_size=64, most_pages=8, chunk=128, small_chunk=32, num_drafts=0,
    steps_per_call=8, draft_vocabulary=None,
)  # fmt: skip


class ScriptedEngine(Engine):
    """Gives one answer after the other and keeps the prompts and seeds that it was given.

    An answer is cut off if it lacks the end of turn. The answer ``too long`` refuses the prompt.
    """

    model = types.SimpleNamespace(config=PRESETS["2b"], dtype=np.dtype("float32"))
    metrics = Metrics()

    def __init__(self, tokenizer: Tokenizer, answers: Iterable[str]):
        self.tokenizer, self.answers, self.prompts, self.seeds = tokenizer, iter(answers), [], []
        self.running = []
        self.sizes = SIZES

    def submit(self, prompt, *, seed=0, stream=False, **_):
        answer = next(self.answers)
        self.prompts.append(self.tokenizer.decode(prompt, skip_special_tokens=False))
        self.seeds.append(seed)
        if answer == "too long":
            raise ValueError("prompt 0 has too many tokens")
        self.running.append((len(self.prompts), prompt, self.tokenizer.encode(answer)))
        return len(self.prompts)

    def step(self):
        """Tells the first token of a request, then the others with the end."""
        number, prompt, tokens = self.running.pop(0)
        stream = ThinkingStream(self.tokenizer, opened=opens_thinking(self.tokenizer, prompt))
        told = [StreamedToken(token, *stream.push(token)) for token in tokens]
        told.append(StreamedToken(tokens[-1], *stream.flush()))
        reason = "stop" if tokens[-1] in self.tokenizer.eos_token_ids else "length"
        completion = Completion.from_tokens(self.tokenizer, prompt, tokens, reason)
        return [Event(0), Event(number, tuple(told[:1])), Event(number, tuple(told[1:]), completion)]

    def generate(self, prompts, *, seed=0, on_finish=None, **settings):
        """Finishes the last prompt first."""
        completions = []
        for number in reversed(range(len(prompts))):
            self.submit(prompts[number], seed=seed if isinstance(seed, int) else seed[number])
            completions.append(self.step()[-1].completion)
            if on_finish is not None:
                on_finish(number, completions[-1])
        return completions[::-1]
