"""``qwen35 plan``: what prefill and decoding need on a TPU, before one is rented."""

import argparse

from qwen35_jax.commands.options import check_new_file, local_path
from qwen35_jax.planning.decode import DEFAULT_SLOTS, Workload, plan_decode
from qwen35_jax.planning.decode_report import to_text
from qwen35_jax.planning.published import find_config
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import GENERATION_AXES
from qwen35_jax.storage import write_json

_DENSE = tuple(size for size, config in PRESETS.items() if config.text.moe is None)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 plan``."""
    parser.epilog = "The engine's programs are compiled for these chips from shapes alone, which takes minutes."
    parser.add_argument("topology", metavar="TOPOLOGY", help="chips and grid, such as v5e:2x4")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="DIR", help="checkpoint whose config.json is read, or a published hub id")
    which.add_argument("--preset", choices=_DENSE, default="2b", help="a published size")
    parser.add_argument("--length", type=int, default=Workload.length, metavar="N",
                        help="tokens of a request, prompt and completion together")  # fmt: skip
    parser.add_argument("--slots", type=int, metavar="N",
                        help=f"requests that write at once; by default about {DEFAULT_SLOTS}")  # fmt: skip
    parser.add_argument("--speculative-tokens", type=int, default=0, metavar="N",
                        help="tokens that the MTP head drafts a step; 0 for none")  # fmt: skip
    parser.add_argument("--draft-vocabulary", type=int, metavar="N", help="draft among the tokens below this id only")
    parser.add_argument("--patches", type=int, default=0, metavar="N",
                        help="plan for images and videos too: most patches of 16 x 16 pixels of a request; 65,536 is "
                             "the largest image, 49,152 the largest video")  # fmt: skip
    for axis, purpose in GENERATION_AXES.items():
        rest = "; by default the chips that the others leave" if axis == "data" else "; by default 1"
        parser.add_argument(f"--mesh.{axis}", dest=f"mesh.{axis}", type=int, metavar="N", help=f"{purpose}{rest}")
    parser.add_argument("--json", type=local_path, metavar="FILE", help="also write the plan to this file")


def run_plan(args: argparse.Namespace) -> None:
    """Compiles and prints.

    Raises:
      ValueError: see ``plan_decode``; or the file exists, or its folder does not.
    """
    if args.json is not None:
        check_new_file(args.json)
    config = PRESETS[args.preset] if args.model is None else find_config(args.model, "model")
    workload = Workload(args.length, args.slots, args.speculative_tokens, args.draft_vocabulary,
                        args.patches)  # fmt: skip
    mesh = {axis: getattr(args, f"mesh.{axis}") for axis in GENERATION_AXES}
    plan = plan_decode(config, args.topology, workload, mesh)
    if args.json is not None:
        write_json(args.json, plan.to_json())
    print(to_text(plan))
