"""``qwen35 generate``: answers to prompts of the command line, or of a file."""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from qwen35_jax import gcs
from qwen35_jax.commands.options import add_answer_options, add_model_options, mesh_of, sampling_of, source_of
from qwen35_jax.hf.source import load_model, load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.generate import MODES, Request, generate_rows, read_requests
from qwen35_jax.processing.tokenizer import Tokenizer


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 generate``."""
    add_model_options(parser)
    add_answer_options(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="user turns, each a conversation of its own")
    parser.add_argument("--input", metavar="FILE.jsonl",
                        help='conversations, also of a bucket: one {"messages": [...], "tools"?: [...], "id"?: ...} '
                             'a line; or {"text": ...}, continued without the chat template')  # fmt: skip
    parser.add_argument("--output", type=_local_path, metavar="FILE.jsonl",
                        help="where to write JSONL rows; without it, text goes to standard output")  # fmt: skip
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="most prompts at once")


def _local_path(text: str) -> Path:
    try:
        gcs.check_is_path(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err).rstrip(".")) from err
    return Path(text)


def run_generate(args: argparse.Namespace) -> None:
    """Answers all prompts."""
    sampling = sampling_of(args)
    if bool(args.prompts) == bool(args.input):
        raise ValueError("give prompts as arguments or a file with --input, one of the two.")
    if args.input and args.system is not None:
        raise ValueError("--system goes with prompts given as arguments; in a file it is the first message of a row.")
    if args.output:
        _check_output(args.output)
    source = source_of(args)
    tokenizer = load_tokenizer(source)
    if args.input:
        requests = read_requests(args.input, tokenizer, enable_thinking=MODES[args.mode])
    else:
        requests = [_request(number, text, args, tokenizer) for number, text in enumerate(args.prompts)]
    engine = Engine(load_model(source, mesh_of(args)), tokenizer, max_batch=args.max_batch)
    engine.check([request.token_ids for request in requests], args.max_new_tokens)
    run = functools.partial(generate_rows, engine, requests, sampling=sampling, max_new_tokens=args.max_new_tokens,
                            seed=args.seed)  # fmt: skip
    if not args.output:
        run(lambda row: _print_row(row, titled=len(requests) > 1))
        return
    with open(args.output, "x", encoding="utf-8") as file:
        run(lambda row: print(json.dumps(row, ensure_ascii=False), file=file, flush=True))


def _check_output(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists; choose another --output or remove it.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} is not a folder; make it, or choose another --output.")


def _request(number: int, text: str, args: argparse.Namespace, tokenizer: Tokenizer) -> Request:
    messages = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages.append({"role": "user", "content": text})
    return Request(number, tokenizer.encode_chat(messages, enable_thinking=MODES[args.mode]))


def _print_row(row: dict[str, Any], *, titled: bool) -> None:
    if titled:
        print(f"--- {row['id']}")
    if row["thinking"]:
        print(f"thinking:\n{row['thinking']}\n\nanswer:")
    print(row["response"], flush=True)
    if row["finish_reason"] == "length":
        print(f"cut off after {row['num_tokens']} tokens; raise --max-new-tokens.", file=sys.stderr)
