"""``qwen35 serve``: a model behind OpenAI's protocol."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator

import numpy as np

from qwen35_jax.commands.options import (
    add_engine_options,
    add_media_options,
    add_model_options,
    engine_of,
    has_vision,
    policy_of,
    source_of,
)
from qwen35_jax.hf.source import load_processor, load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prompts import Prompt
from qwen35_jax.serving.app import MAX_BODY, MAX_WAITING, make_app
from qwen35_jax.serving.serve import bind, serve
from qwen35_jax.vision.patches import bucket_size

KEY_VARIABLE = "QWEN35_API_KEY"


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``run_serve`` reads."""
    parser.epilog = (
        "Programs are compiled before the first client comes; those of the vision tower for the smallest images, and "
        "with --most-patches for all sizes up to it."
    )
    add_model_options(parser)
    add_engine_options(parser)
    add_media_options(parser, text_only=True)
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="most answers written at once")
    parser.add_argument("--name", metavar="NAME", help="what clients call the model; by default as --model has it")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                        help=f"where to listen; {KEY_VARIABLE} holds the key that clients must send")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on; 0 for any free one")
    parser.add_argument("--max-waiting", type=int, default=MAX_WAITING, metavar="N",
                        help="answers that may wait for a slot; beyond them a request gets a 429")  # fmt: skip
    parser.add_argument("--max-body", type=int, default=MAX_BODY, metavar="BYTES", help="most bytes of a request")
    parser.add_argument("--grace-seconds", type=float, default=25.0, metavar="X",
                        help="how long open requests may go on after SIGTERM")  # fmt: skip


def run_serve(args: argparse.Namespace) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
      ValueError: an option is wrong, the port is taken, or the model cannot be loaded.
    """
    for name, least in {"slots": 1, "max_waiting": 0, "max_body": 1, "grace_seconds": 0}.items():
        if not getattr(args, name) >= least:
            raise ValueError(f"{name}={getattr(args, name)}; give at least {least}.")
    key = os.environ.get(KEY_VARIABLE) or None
    # A taken port is told before the model is loaded, which takes long.
    with bind(args.host, args.port) as sock:
        if key is None and args.host not in ("127.0.0.1", "::1", "localhost"):
            print(f"warning: whoever reaches {args.host} can use the model; set {KEY_VARIABLE}.", file=sys.stderr)
        vision = has_vision(args)
        engine = engine_of(args, load_tokenizer(source_of(args)), slots=args.slots, vision=vision)
        # Files of this machine are none of a client's business.
        policy = dataclasses.replace(policy_of(args), allow_files=False)
        processor = load_processor(source_of(args), policy) if vision else None
        _compile(engine, all_images=args.most_patches is not None)
        name = args.name or args.model
        app = make_app(engine, name, api_key=key, max_body=args.max_body, max_waiting=args.max_waiting,
                       processor=processor)  # fmt: skip
        host = f"[{args.host}]" if ":" in args.host else args.host
        address = f"http://{host}:{sock.getsockname()[1]}/v1"

        def tell() -> None:
            print(f"serving {name} at {address}", flush=True)

        serve(app, sock, grace_seconds=args.grace_seconds, on_ready=tell)


def _compile(engine: Engine, *, all_images: bool) -> None:
    """Runs every program once, before the first client comes; of the tower's that for the smallest images, or all.

    A prompt has a whole chunk and a short one, and comes twice, so that the second request is forked from the first.
    """
    length = min(engine.sizes.chunk + engine.sizes.small_chunk + 1, engine.max_length - 1)
    prompts: list[Prompt] = [[engine.tokenizer.pad_token_id] * length] * 2
    if engine.sizes.most_patches and length > 1:
        sizes = _images(engine)
        prompts += [_prompt_of_image(engine, next(sizes), length)] * 2
        prompts += [_prompt_of_image(engine, patches, length) for patches in sizes if all_images]
    engine.generate(prompts, max_new_tokens=1)


def _images(engine: Engine) -> Iterator[int]:
    """Yields the patches of the smallest image of each program of the tower, as far as requests may have such."""
    assert engine.model.config.vision is not None, "an engine that takes patches has a tower"
    joined = patches = engine.model.config.vision.spatial_merge_size**2
    while patches <= engine.sizes.most_patches and patches // joined < engine.max_length - 1:
        yield patches
        patches = bucket_size(patches) + joined


def _prompt_of_image(engine: Engine, patches: int, length: int) -> Prompt:
    """Returns a prompt of at least ``length`` tokens that begins with an image."""
    config = engine.model.config
    assert config.vision is not None, "an engine that takes patches has a tower"
    vision, side = config.vision, config.vision.spatial_merge_size
    num_pads = patches // side**2
    ids = np.full((1, max(length, num_pads + 1)), engine.tokenizer.pad_token_id)
    ids[0, :num_pads] = config.image_token_id
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": ids,
        "pixels": np.zeros((patches, width), np.uint8),
        "grids": np.array([[1, side, patches // side]]),
    }
