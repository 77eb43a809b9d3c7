"""``qwen35 chat``: a conversation at the terminal, or with lines from a pipe."""

import argparse
import sys
from collections.abc import Iterator

from qwen35_jax.commands.options import (
    add_answer_options,
    add_engine_options,
    add_media_options,
    add_model_options,
    add_sampling_options,
    engine_of,
    has_vision,
    policy_of,
    sampling_of,
    source_of,
)
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.chat_files import mode_of
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_processor, load_tokenizer
from qwen35_jax.inference.chat import HELP, chat
from qwen35_jax.inference.generate import MODES
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import card_sampling
from qwen35_jax.processing.tokenizer import Tokenizer


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 chat``."""
    parser.epilog = (
        f"{HELP} Tokens are chosen as the model card of this size advises for the mode, where options do not say "
        "otherwise; with --temperature 0 the card has no say."
    )
    add_model_options(parser)
    add_engine_options(parser)
    add_media_options(parser, text_only=True)
    add_answer_options(parser)
    add_sampling_options(parser, by_card=True)


def run_chat(args: argparse.Namespace) -> None:
    """Answers the lines of standard input."""
    tokenizer = load_tokenizer(source_of(args))
    sampling = sampling_of(args, SamplingParams() if args.temperature == 0 else _advice(args, tokenizer))
    vision = has_vision(args)
    engine = engine_of(args, tokenizer, slots=1, vision=vision)
    # What is wrong for every turn is told before the first one.
    engine.check([[tokenizer.pad_token_id]], max_new_tokens=args.max_new_tokens, sampling=sampling)
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
        processor=load_processor(source_of(args), policy_of(args)) if vision else None,
    )


def _advice(args: argparse.Namespace, tokenizer: Tokenizer) -> SamplingParams:
    mode = mode_of(tokenizer, enable_thinking=MODES[args.mode])
    return SamplingParams(**card_sampling(ModelConfig.from_hf(find_folder(args.model)), mode)._asdict())


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
