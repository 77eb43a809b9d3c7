"""``qwen35 bench``: how fast a model answers a workload on this machine."""

import argparse
import dataclasses

import jax
import numpy as np

from qwen35_jax.commands.options import (
    INPUT_HELP,
    add_engine_options,
    add_model_options,
    add_sampling_options,
    add_slots_option,
    check_new_file,
    engine_of,
    local_path,
    sampling_of,
    slots_of,
    source_of,
)
from qwen35_jax.hf.source import load_tokenizer
from qwen35_jax.inference.bench import Measured, measure
from qwen35_jax.inference.generate import MODES, read_requests
from qwen35_jax.inference.metrics import Drafted
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.storage import write_json


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 bench``."""
    parser.epilog = "All requests arrive at once. Compilation is not counted."
    add_model_options(parser)
    add_slots_option(parser)
    add_engine_options(parser)
    parser.add_argument("--input", metavar="FILE.jsonl", help=f"{INPUT_HELP}; by default prompts of random tokens")
    parser.add_argument("--mode", choices=tuple(MODES), default="default",
                        help="whether the model reasons first, with --input")  # fmt: skip
    parser.add_argument("--requests", type=int, default=32, metavar="N",
                        help="number of requests; with --input the first rows of the file")  # fmt: skip
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="length of a random prompt")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N",
                        help="tokens that each request writes; with --input the most that it may write")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random prompts and choices")
    parser.add_argument("--json", type=local_path, metavar="FILE", help="also write every figure to this file")
    add_sampling_options(parser)


def run_bench(args: argparse.Namespace) -> None:
    """Measures, and prints a table."""
    for name in ("requests", "prompt_tokens", "new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}={getattr(args, name)}; give at least 1.")
    if args.json is not None:
        check_new_file(args.json)
    # Random prompts say nothing, so that an end token would only make the figures depend on chance.
    args.ignore_end = args.input is None
    sampling = sampling_of(args)
    tokenizer = load_tokenizer(source_of(args))
    prompts = _prompts(args, tokenizer)
    engine = engine_of(args, tokenizer, slots=slots_of(args, len(prompts)))
    measured = measure(engine, prompts, sampling=sampling, max_new_tokens=args.new_tokens, seed=args.seed)
    print(_table(engine.sizes, measured))
    if args.json:
        names = ("model", "adapter", "dtype", "speculative_tokens", "input", "new_tokens", "seed")
        about = {name: getattr(args, name) for name in names} | dataclasses.asdict(sampling)
        about |= {"requests": len(prompts), "slots": engine.slots, "cache_tokens": engine.sizes.cache_tokens}
        about |= {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
        write_json(args.json, about | measured.to_json())


def _prompts(args: argparse.Namespace, tokenizer: Tokenizer) -> list[list[int]]:
    if args.input:
        found = read_requests(args.input, tokenizer, enable_thinking=MODES[args.mode])
        return [request.token_ids for request in found[: args.requests]]
    rng = np.random.default_rng(args.seed)
    return rng.integers(tokenizer.pad_token_id, size=(args.requests, args.prompt_tokens)).tolist()


def _table(sizes: EngineSizes, measured: Measured) -> str:
    count, figures = len(measured.first_token_seconds), measured.to_json()
    prompt, new = measured.prompt_tokens / count, measured.generated_tokens / count
    p50, p95 = figures["first_token_p50_seconds"], figures["first_token_p95_seconds"]
    lines = {
        "requests": f"{count}; on average {prompt:.0f} prompt tokens and {new:.0f} new ones",
        "slots, speculative tokens": f"{sizes.slots}, {sizes.num_drafts}",
        "prompt tokens/s": f"{measured.prompt_rate:,.1f} (prompts alone)",
        "generated tokens/s": f"{measured.rate:,.1f} (whole workload)",
        "decoded tokens/s": f"{measured.decode_rate:,.1f} (whole workload less the time of the prompts alone)",
        "first token": f"p50 {p50:.3f} s, p95 {p95:.3f} s (all requests arrive at once)",
    }
    for name, drafts in measured.drafts.items():
        if drafts:
            lines[f"drafts accepted by {name}"] = ", ".join(f"{key}: {_share(each)}" for key, each in drafts.items())
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def _share(drafted: Drafted) -> str:
    return f"{drafted.accepted / drafted.proposed:.3f} of {drafted.proposed:,}"
