"""Options that several commands share, and what they stand for."""

import argparse

from jax.sharding import Mesh

from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.generate import MODES
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.sharding import GENERATION_AXES, MeshConfig

DTYPES = ("bfloat16", "float32")
MODEL_HELP = "Hugging Face folder of a checkpoint, also of a bucket (gs://), or hub id"
OUT_HELP = "new folder, also of a bucket (gs://)"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``source_of`` and ``mesh_of`` read."""
    parser.add_argument("--model", required=True, metavar="DIR", help=MODEL_HELP)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter for it, given likewise")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of weights and computation")
    add_mesh_options(parser)


def add_mesh_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``mesh_of`` reads."""
    for axis, purpose in GENERATION_AXES.items():
        parser.add_argument(f"--mesh.{axis}", dest=f"mesh.{axis}", type=int, default=1, metavar="N", help=purpose)


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a conversation begins, and how its answers are written; ``sampling_of`` reads the latter."""
    defaults = SamplingParams()
    parser.add_argument("--mode", choices=tuple(MODES), default="default",
                        help="whether the model reasons first; default: as its chat template decides")  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="most tokens of one answer")
    parser.add_argument("--temperature", type=float, default=defaults.temperature, metavar="X",
                        help="0 takes the most likely token")  # fmt: skip
    parser.add_argument(
        "--top-k", type=int, default=defaults.top_k, metavar="N", help="most likely tokens to choose from; 0 keeps all"
    )
    parser.add_argument("--top-p", type=float, default=defaults.top_p, metavar="P",
                        help="keep the most likely tokens whose probabilities sum to P; 1 keeps all")  # fmt: skip
    parser.add_argument("--presence-penalty", type=float, default=defaults.presence_penalty, metavar="X",
                        help="subtracted from the logits of tokens generated before")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random choices")


def sampling_of(args: argparse.Namespace) -> SamplingParams:
    """Returns how tokens are chosen.

    Raises:
      ValueError: a value is out of its range.
    """
    return SamplingParams(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, presence_penalty=args.presence_penalty
    )


def mesh_of(args: argparse.Namespace) -> Mesh:
    """Returns the mesh of ``--mesh.AXIS``; a ``ValueError`` says that it does not fit the devices."""
    return MeshConfig(**{axis: getattr(args, f"mesh.{axis}") for axis in GENERATION_AXES}).mesh()


def source_of(args: argparse.Namespace) -> ModelSource:
    """Returns which model is meant."""
    return ModelSource(args.model, args.adapter, args.dtype)
