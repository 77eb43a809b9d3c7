"""Tokens per second of the engine of slots on the device at hand, with random weights, against transformers.

    python -m benchmarks.engine_on_device --tokenizer DIR --preset 2b --slots 64 --new-tokens 128

Prints one line for plain decoding, one for two drafts a step, and one for ``generate`` of transformers if torch finds
a GPU. Random weights accept hardly any draft, so the second line shows what a step with drafts costs, not a gain. The
share of bandwidth counts what a step must move: weights, states read and written, and keys and values.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer

SAMPLING = SamplingParams(temperature=1.0, top_k=20, top_p=0.95, presence_penalty=1.5)


def bytes_of_a_step(model: Qwen35, slots: int, length: int) -> float:
    """Counts what one plain step must move: weights once, states twice, keys and values of ``length`` tokens once."""
    text, size = model.config.text, jnp.dtype(model.dtype).itemsize
    head = 0 if model.lm_head is None else text.vocab_size * text.hidden_size * size
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state((model.layers, model.norm)))) + head
    weights += 0 if head else text.vocab_size * text.hidden_size * size
    deltas = text.num_periods * (text.period - 1)
    state = deltas * text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim * 4
    keys_values = text.num_periods * 2 * text.num_key_value_heads * text.head_dim * size
    return weights + slots * (2 * state + length * keys_values)


def measure(model: Qwen35, drafts: int, args: argparse.Namespace) -> None:
    """Runs one engine over the requests twice and reports the second run, which compiles nothing."""
    prompts = np.random.default_rng(0).integers(0, 248_000, (args.slots, args.prompt_tokens)).tolist()
    tokenizer = Tokenizer.from_pretrained(args.tokenizer)
    room = args.slots * (args.prompt_tokens + args.new_tokens + 512)
    engine = Engine(model, tokenizer, slots=args.slots, speculative_tokens=drafts, cache_tokens=room)
    sampling = dataclasses.replace(SAMPLING, ignore_end=True)
    engine.generate(prompts, sampling=sampling, max_new_tokens=8)
    numbers = [engine.submit(prompt, sampling=sampling, max_new_tokens=args.new_tokens, seed=seed)
               for seed, prompt in enumerate(prompts)]  # fmt: skip
    start, done = time.perf_counter(), 0
    while not engine.metrics.generated_tokens > 8 * args.slots:
        done += len(engine.step())
    begun, tokens, steps = time.perf_counter(), engine.metrics.generated_tokens, engine.metrics.decode_steps
    while done < len(numbers):
        done += len(engine.step())
    seconds = time.perf_counter() - begun
    steps = engine.metrics.decode_steps - steps
    tokens = engine.metrics.generated_tokens - tokens
    per_step = seconds / steps
    moved = bytes_of_a_step(model, args.slots, args.prompt_tokens + args.new_tokens // 2)
    metrics = engine.metrics
    print(
        f"{drafts} drafts: {tokens / seconds:,.0f} tokens/s, {1e3 * per_step:.2f} ms a step, "
        f"{moved / per_step / 1e9:,.0f} GB/s of what a plain step must move; accepted {metrics.drafts.accepted} of "
        f"{metrics.drafts.proposed}; prompts and the first steps {begun - start:.1f} s",
        flush=True,
    )


def measure_transformers(args: argparse.Namespace) -> None:
    """Runs transformers' ``generate`` on the same number of prompts of the same length."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

    if not torch.cuda.is_available():
        print("transformers: torch finds no GPU")
        return
    config = Qwen3_5TextConfig(**PRESETS[args.preset].to_hf()["text_config"])
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    prompts = torch.randint(0, config.vocab_size, (args.slots, args.prompt_tokens), device="cuda")
    options = {"do_sample": True, "top_k": 20, "top_p": 0.95, "eos_token_id": None, "pad_token_id": 0}
    model.generate(prompts, max_new_tokens=4, min_new_tokens=4, **options)
    seconds = []
    for new_tokens in (8, 8 + args.reference_tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(prompts, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    per_step = (seconds[1] - seconds[0]) / args.reference_tokens
    print(f"transformers: {args.slots / per_step:,.0f} tokens/s, {1e3 * per_step:.2f} ms a step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="folder with the tokenizer of Qwen3.5")
    parser.add_argument("--preset", default="2b")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--reference-tokens", type=int, default=32)
    args = parser.parse_args()
    print(jax.devices()[0].device_kind, jax.__version__, flush=True)
    with nnx.use_eager_sharding(False):
        make = nnx.jit(lambda: Qwen35(PRESETS[args.preset], dtype=jnp.bfloat16, vision=False, rngs=nnx.Rngs(0)))
        model = make()
    for drafts in (0, 2):
        measure(model, drafts, args)
    del model
    measure_transformers(args)


if __name__ == "__main__":
    main()
