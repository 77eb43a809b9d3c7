"""``qwen35 generate``: answers to prompts of the command line, or of a file."""

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax

from qwen35_jax.commands.options import (
    INPUT_HELP,
    add_answer_options,
    add_engine_options,
    add_media_options,
    add_model_options,
    add_research_options,
    add_sampling_options,
    add_slots_option,
    engine_of,
    local_path,
    policy_of,
    sampling_of,
    slots_of,
    source_of,
)
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_processor, load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.generate import MODES, Request, generate_rows, in_order, read_requests, request_of
from qwen35_jax.inference.row_file import open_row_file
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.media import MediaError, open_media
from qwen35_jax.processing.processor import Processor, media_of
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import GENERATION_AXES
from qwen35_jax.storage import fingerprint

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja")


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 generate``."""
    parser.epilog = "A command that was killed goes on where it was when it is given again with the same --output."
    add_model_options(parser)
    add_slots_option(parser)
    add_engine_options(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="user turns, each a conversation of its own")
    parser.add_argument("--input", metavar="FILE.jsonl", help=INPUT_HELP)
    parser.add_argument("--output", type=local_path, metavar="FILE.jsonl",
                        help="where to write JSONL rows; without it, text goes to standard output")  # fmt: skip
    parser.add_argument("--image", action="append", default=[], metavar="FILE",
                        help="image before each PROMPT; may be given several times, also as an address")  # fmt: skip
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="video, likewise")
    add_media_options(parser)
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each prompt")
    add_answer_options(parser)
    add_sampling_options(parser)
    add_research_options(parser)


def run_generate(args: argparse.Namespace) -> None:
    """Answers all prompts."""
    sampling = sampling_of(args)
    if bool(args.prompts) == bool(args.input):
        raise ValueError("give prompts as arguments or a file with --input, one of the two.")
    if args.input and args.system is not None:
        raise ValueError("--system goes with prompts given as arguments; in a file it is the first message of a row.")
    if args.input and (args.image or args.video):
        raise ValueError(
            "--image and --video go with prompts given as arguments; in a file they are items of messages."
        )
    if args.logprobs is not None and args.output is None:
        raise ValueError("--logprobs are written to a file; give --output FILE.jsonl too.")
    if args.samples < 1:
        raise ValueError(f"samples={args.samples}; give at least 1.")
    how = {"sampling": sampling, "max_new_tokens": args.max_new_tokens, "seed": args.seed, "samples": args.samples}
    if args.output is None:
        engine, requests, processor = _prepare(args, sampling)
        show = functools.partial(_print_row, titled=len(requests) * args.samples > 1)
        generate_rows(engine, requests, in_order(show), processor=processor, **how)
        return
    with open_row_file(args.output) as rows:
        # How much memory is free may differ from one start to the next.
        args.cache_tokens = args.cache_tokens or rows.settings.get("cache_tokens")
        engine, requests, processor = _prepare(args, sampling)
        rows.begin(_settings(args, engine, requests, sampling))
        if len(rows):
            print(f"{len(rows)} of {len(requests) * args.samples} rows are there already.", file=sys.stderr)
        generate_rows(engine, requests, rows.add, done=rows, processor=processor, **how)
        rows.finish()
    print(f"wrote {args.output}; rows: {len(requests) * args.samples:,}")


def _prepare(args: argparse.Namespace, sampling: SamplingParams) -> tuple[Engine, list[Request], Processor | None]:
    """Reads the requests, loads the model and checks that it can answer them; images and videos are opened later."""
    tokenizer = load_tokenizer(source_of(args))
    if args.input:
        requests = read_requests(args.input, tokenizer, enable_thinking=MODES[args.mode], media=True)
    else:
        requests = [_request(number, text, args, tokenizer) for number, text in enumerate(args.prompts)]
    processor = _processor(args, requests)
    slots = slots_of(args, len(requests) * args.samples)
    engine = engine_of(args, tokenizer, slots=slots, vision=processor is not None)
    # What is wrong for every prompt is told of a short one too.
    prompts = [request.token_ids or [tokenizer.pad_token_id] for request in requests]
    engine.check(prompts, max_new_tokens=args.max_new_tokens, sampling=sampling)
    return engine, requests, processor


def _request(number: int, text: str, args: argparse.Namespace, tokenizer: Tokenizer) -> Request:
    messages: list[dict[str, Any]] = [] if args.system is None else [{"role": "system", "content": args.system}]
    media = [{"type": kind, kind: source} for kind in ("image", "video") for source in getattr(args, kind)]
    messages.append({"role": "user", "content": [*media, {"type": "text", "text": text}] if media else text})
    return request_of(number, messages, tokenizer, enable_thinking=MODES[args.mode])


def _processor(args: argparse.Namespace, requests: Sequence[Request]) -> Processor | None:
    """Loads the processor if there are images or videos, and looks whether their files are there."""
    rows = [(request.id, request.row["messages"]) for request in requests if request.row is not None]
    if not rows:
        return None
    if ModelConfig.from_hf(find_folder(args.model)).vision is None:
        raise ValueError(
            f"{args.model} has no vision tower, but request {rows[0][0]} has images or videos; leave them out, or give "
            "a checkpoint that has a tower."
        )
    root = None if args.input is None else args.input.rpartition("/")[0] or None
    processor = load_processor(source_of(args), policy_of(args, root))
    for request_id, messages in rows:
        for source in (media.source for media in media_of(messages)):
            if isinstance(source, str) and not source.startswith(("http:", "https:", "data:", "gs:")):
                try:
                    open_media(source, processor.policy)
                except MediaError as err:
                    raise ValueError(f"request {request_id}: {err}") from err
    return processor


def _settings(
    args: argparse.Namespace, engine: Engine, requests: Sequence[Request], sampling: SamplingParams
) -> dict[str, Any]:
    """Returns all that a row depends on, by names that a message can use."""
    sizes = engine.sizes
    prompts = json.dumps([[request.id, request.row or request.token_ids] for request in requests])
    return {
        **{name: getattr(args, name) for name in ("dtype", "max_new_tokens", "samples", "seed")},
        **{f"mesh.{axis}": getattr(args, f"mesh.{axis}") for axis in GENERATION_AXES},
        **dataclasses.asdict(sampling),
        "slots": sizes.slots,
        "cache_tokens": sizes.cache_tokens,
        "speculative_tokens": sizes.num_drafts,
        "page_size": sizes.page_size,
        "prefill_chunk": sizes.chunk,
        "most_patches": sizes.most_patches,
        "model_files": _files_of(args.model),
        "adapter_files": None if args.adapter is None else _files_of(args.adapter),
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def _files_of(model: str) -> str:
    folder = find_folder(model)
    return fingerprint(path for pattern in _MODEL_FILES for path in folder.glob(pattern))


def _print_row(row: dict[str, Any], *, titled: bool) -> None:
    if titled:
        print(f"--- {row['id']}" + (f", sample {row['repeat']}" if "repeat" in row else ""))
    if row["thinking"]:
        print(f"thinking:\n{row['thinking']}\n\nanswer:")
    print(row["response"], flush=True)
    if row["finish_reason"] == "length":
        print(f"cut off after {row['num_tokens']} tokens; raise --max-new-tokens.", file=sys.stderr)
    elif row["finish_reason"] == "loop":
        print(f"ended after {row['num_tokens']} tokens, which had come to repeat themselves.", file=sys.stderr)
