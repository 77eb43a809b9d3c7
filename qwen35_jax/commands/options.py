"""Options that several commands share, and what they stand for."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from qwen35_jax import gcs
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import ModelSource, load_model
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.generate import MODES
from qwen35_jax.inference.sampling import MAX_LOGPROBS, SamplingParams
from qwen35_jax.processing.media import MediaPolicy
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import GENERATION_AXES, MeshConfig

DTYPES = ("bfloat16", "float32")
MODEL_HELP = "Hugging Face folder of a checkpoint, also of a bucket (gs://), or hub id"
OUT_HELP = "new folder, also of a bucket (gs://)"
_MOST_SLOTS = 64
INPUT_HELP = (
    'conversations, also of a bucket: one {"messages": [...], "tools"?: [...], "id"?: ...} a line; or {"text": ...}, '
    "continued without the chat template; paths of images and videos start at the file's folder"
)


def local_path(text: str) -> Path:
    """Reads an option that names a file of this machine."""
    try:
        gcs.check_is_path(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err).rstrip(".")) from err
    return Path(text)


def check_new_file(path: Path) -> None:
    """Raises ``ValueError``, before the work that fills it, for a file that exists or has no folder to be in."""
    if path.exists():
        raise ValueError(f"{path} exists; name a new file or remove it.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} is not a folder; make it, or name another file.")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``source_of`` and ``mesh_of`` read."""
    parser.add_argument("--model", required=True, metavar="DIR", help=MODEL_HELP)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter for it, given likewise")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of weights and computation")
    add_mesh_options(parser)


def source_of(args: argparse.Namespace) -> ModelSource:
    """Returns which model is meant."""
    return ModelSource(args.model, args.adapter, args.dtype)


def add_mesh_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``mesh_of`` reads."""
    for axis, purpose in GENERATION_AXES.items():
        parser.add_argument(f"--mesh.{axis}", dest=f"mesh.{axis}", type=int, default=1, metavar="N", help=purpose)


def mesh_of(args: argparse.Namespace) -> Mesh:
    """Returns the mesh of ``--mesh.AXIS``; a ``ValueError`` says that it does not fit the devices."""
    return MeshConfig(**{axis: getattr(args, f"mesh.{axis}") for axis in GENERATION_AXES}).mesh()


def add_slots_option(parser: argparse.ArgumentParser) -> None:
    """Adds what ``slots_of`` reads."""
    parser.add_argument("--slots", type=int, metavar="N",
                        help=f"most answers written at once; by default all, up to {_MOST_SLOTS}")  # fmt: skip


def slots_of(args: argparse.Namespace, count: int) -> int:
    """Returns the number of slots for so many answers."""
    return min(count, _MOST_SLOTS) if args.slots is None else args.slots


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``engine_of`` reads."""
    parser.add_argument("--cache-tokens", type=int, metavar="N",
                        help="tokens that the KV cache holds; by default as many as memory allows")  # fmt: skip
    parser.add_argument("--speculative-tokens", type=int, default=0, metavar="N",
                        help="tokens that the MTP head drafts a step, for speed; 0 for none")  # fmt: skip


def add_media_options(parser: argparse.ArgumentParser, *, text_only: bool = False) -> None:
    """Adds what ``policy_of`` and, for a model with a tower, ``engine_of`` read.

    Args:
      text_only: add what ``has_vision`` reads, too.
    """
    if text_only:
        parser.add_argument("--text-only", action="store_true",
                            help="leave the vision tower out, and the memory that it takes")  # fmt: skip
    parser.add_argument("--allow-urls", action="store_true",
                        help="fetch images and videos that conversations name by http(s) address; never from private "
                             "networks")  # fmt: skip
    parser.add_argument("--most-patches", type=int, metavar="N",
                        help="patches of 16 x 16 pixels of all images and videos of a conversation, each frame pair of "
                             "a video counted; rounded up to 256, 512, 768, 1,024, 1,536, 2,048, 3,072, ...; by "
                             "default 65,536, those of the largest image")  # fmt: skip


def has_vision(args: argparse.Namespace) -> bool:
    """Whether the checkpoint has a vision tower and the options do not leave it out."""
    return not args.text_only and ModelConfig.from_hf(find_folder(args.model)).vision is not None


def policy_of(args: argparse.Namespace, root: Path | str | None = None) -> MediaPolicy:
    """Returns what may be opened; ``root`` is where relative paths start."""
    return MediaPolicy(allow_urls=args.allow_urls, root=root)


def engine_of(args: argparse.Namespace, tokenizer: Tokenizer, *, slots: int, vision: bool = False) -> Engine:
    """Loads the model and makes an engine.

    Args:
      vision: load the vision tower too, if the checkpoint has one.

    Raises:
      ValueError: the model cannot be loaded, or an option does not fit it.
    """
    return Engine(
        load_model(source_of(args), mesh_of(args), vision=vision),
        tokenizer,
        slots=slots,
        cache_tokens=args.cache_tokens,
        speculative_tokens=args.speculative_tokens,
        most_patches=args.most_patches if vision else None,
    )


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a conversation begins, and how long its answers may get."""
    parser.add_argument("--mode", choices=tuple(MODES), default="default",
                        help="whether the model reasons first; default: as its chat template decides")  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N",
                        help="most tokens of one answer, thinking included")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random choices")


def add_sampling_options(parser: argparse.ArgumentParser, *, by_card: bool = False) -> None:
    """Adds how tokens are chosen and where an answer ends, for ``sampling_of``.

    Args:
      by_card: leave the settings that the model card advises to ``sampling_of``, which gets them as its ``base``.
    """
    group = parser.add_argument_group("sampling", "How tokens are chosen, and where an answer ends.")
    for name, metavar, text in (
        ("temperature", "X", "0 takes the most likely token"),
        ("top_k", "N", "most likely tokens to choose from; 0 keeps all"),
        ("top_p", "P", "keep the most likely tokens whose probabilities sum to P; 1 keeps all"),
        ("min_p", "P", "keep tokens at least P times as likely as the most likely one"),
        ("presence_penalty", "X", "subtracted from the logits of tokens generated before"),
        ("frequency_penalty", "X", "subtracted from a token's logit as often as it was generated before"),
        ("repetition_penalty", "X", "divides the logits of tokens in prompt or answer; 1 changes nothing"),
    ):
        default = getattr(SamplingParams(), name)
        group.add_argument(f"--{name.replace('_', '-')}", type=type(default), metavar=metavar, help=text,
                           default=None if by_card else default)  # fmt: skip
    group.add_argument("--logit-bias", type=_bias, action="append", metavar="ID=VALUE",
                       help="added to the logits of a token, by its id; may be given several times")  # fmt: skip
    group.add_argument("--stop", action="append", metavar="TEXT",
                       help="ends the answer, which is left without it; may be given several times")  # fmt: skip
    group.add_argument("--stop-token-id", type=int, action="append", metavar="ID",
                       help="ends the answer as the tokenizer's end tokens do; may be given several times")  # fmt: skip
    group.add_argument("--thinking-budget", type=int, metavar="N", help="most tokens of the think block")
    group.add_argument("--budget-close", choices=("hard", "sentence"), default="hard",
                       help="how the budget closes the block: by its mark alone, or by the model's own sentence "
                            "for thoughts that end early")  # fmt: skip
    group.add_argument("--detect-loops", action="store_true",
                       help="end an answer that has come to repeat its last 64 tokens")  # fmt: skip


def add_research_options(parser: argparse.ArgumentParser) -> None:
    """Adds the settings of sampling that a conversation has no use for, for ``sampling_of``."""
    parser.add_argument("--ignore-end", action="store_true", help="write on after end tokens, to the limit")
    parser.add_argument("--logprobs", type=int, metavar="N",
                        help="give log-probabilities of each token, and of the N most likely ones (at most "
                             f"{MAX_LOGPROBS})")  # fmt: skip


def sampling_of(args: argparse.Namespace, base: SamplingParams | None = None) -> SamplingParams:
    """Returns how tokens are chosen.

    Args:
      base: the settings for options that were not given.

    Raises:
      ValueError: a value is out of its range.
    """
    given: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(SamplingParams)
        if (value := getattr(args, field.name, None)) is not None
    }
    if args.stop_token_id is not None:
        given["stop_token_ids"] = tuple(args.stop_token_id)
    return dataclasses.replace(base or SamplingParams(), **given)


def _bias(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is not ID=VALUE, such as 271=-5") from err
