"""Small engines for tests, with a tokenizer whose text is its token ids."""

import jax
import jax.numpy as jnp

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import Tokenizer

SLOTS, PAGE, CHUNK, STEPS = 4, 8, 16, 4
THINK, END_THINK, ENDS = 508, 509, (510, 511)
GREEDY = SamplingParams(logprobs=3)
SAMPLED = [
    SamplingParams(temperature=1.0, logprobs=0),
    SamplingParams(temperature=0.6, top_k=20, top_p=0.95, presence_penalty=1.5, logprobs=5),
    SamplingParams(temperature=1.2, top_k=5, min_p=0.05, repetition_penalty=1.1, logit_bias={7: 2.0}, logprobs=0),
    SamplingParams(temperature=0.9, top_p=0.8, frequency_penalty=0.4, logprobs=0),
]


class Numbers(Tokenizer):
    """A tokenizer whose text is its token ids; the model's last tokens end a text or enclose a thought."""

    def __init__(self, eos_token_ids: tuple[int, ...] = ENDS):
        self.eos_token_ids = eos_token_ids

    def token_id(self, token):
        return {"<think>": THINK, "</think>": END_THINK}[token]

    def encode(self, text):
        return [20, 21, END_THINK, 22]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(f"{token} " for token in ids if not (skip_special_tokens and token in ENDS))


def make_engine(model, drafts: int = 0, *, cache_tokens: int = 1024, poison: bool = False, **others) -> Engine:
    sizes = {"slots": SLOTS, "page_size": PAGE, "prefill_chunk": CHUNK, "steps_per_call": STEPS} | others
    engine = Engine(model, Numbers(), cache_tokens=cache_tokens, speculative_tokens=drafts, **sizes)
    if poison:
        runner = engine._runner
        runner._memory = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), runner._memory)
    return engine


LIMITS = [5 + 7 * (i % 5) for i in range(8)]
MIXED = [SAMPLED[i % 4] for i in range(8)]


def assert_is_idle(engine):
    assert engine.num_free_slots == engine.slots and engine.num_free_pages == engine.num_pages
    assert not engine.has_work and not engine._mailbox._events and not engine._mailbox._reserved
    gallery = engine._runner.scheduler.gallery
    assert not len(gallery) and not gallery._wanted


def finish(engine) -> dict[int, object]:
    done = {}
    while engine.has_work:
        done.update({event.id: event.completion for event in engine.step() if event.completion})
    return done
