"""``qwen35 chat``: a conversation at the terminal, or with lines from a pipe."""

import argparse
import sys
from collections.abc import Iterator

from qwen35_jax.commands.options import add_answer_options, add_model_options, mesh_of, sampling_of, source_of
from qwen35_jax.hf.source import load_model, load_tokenizer
from qwen35_jax.inference.chat import HELP, chat
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.generate import MODES


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 chat``."""
    parser.epilog = HELP
    add_model_options(parser)
    add_answer_options(parser)


def run_chat(args: argparse.Namespace) -> None:
    """Answers the lines of standard input."""
    sampling = sampling_of(args)
    source = source_of(args)
    tokenizer = load_tokenizer(source)
    engine = Engine(load_model(source, mesh_of(args)), tokenizer, max_batch=1)
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP)
    chat(
        engine,
        _typed_lines() if interactive else sys.stdin,
        sys.stdout,
        sampling=sampling,
        max_new_tokens=args.max_new_tokens,
        enable_thinking=MODES[args.mode],
        system=args.system,
        seed=args.seed,
        color=sys.stdout.isatty(),
    )


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
