"""Which model a command works with, and how it is loaded: the one answer for training, evaluation and commands."""

import dataclasses
from typing import Literal

from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import load
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.media import MediaPolicy
from qwen35_jax.processing.processor import Processor
from qwen35_jax.processing.tokenizer import TOKENIZER_FILES, Tokenizer


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A checkpoint, with an adapter if there is one, and the precision it is used in."""

    path: str = dataclasses.field(default="", compare=False)
    """Hugging Face folder, also of a bucket (``gs://``), or hub id with weights, tokenizer and chat template. It is
    not compared: a resumed run may find its checkpoint elsewhere, and must find the same files."""
    adapter: str | None = None
    """PEFT adapter, given likewise, applied on top of the model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the matrix products."""
    param_dtype: Literal["bfloat16", "float32"] | None = None
    """Dtype in which the weights are held; by default ``dtype``."""


def load_model(source: ModelSource, mesh: Mesh | None = None, *, vision: bool = False) -> Qwen35:
    """Loads the model, by default to read and write text alone.

    Args:
      mesh: where parameters are placed; by default one device.
      vision: load the vision tower too, if the checkpoint has one.

    Raises:
      FileNotFoundError: there is no such folder or repository, or it lacks a file.
      ValueError: no model is named, or it cannot be loaded (``hf.load``).
    """
    options = {"param_dtype": source.param_dtype, "vision": vision}
    return load(find_folder(_named(source)), source.dtype, mesh, source.adapter, **options)


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Loads the tokenizer with its chat template: those that the adapter was trained with, if its folder holds them.

    Raises:
      FileNotFoundError: there is no such folder or repository.
      ValueError: no model is named, a file of the tokenizer is missing or damaged, or the adapter's tokenizer has more
        tokens than the model.
    """
    folder = find_folder(_named(source))
    adapter = None if source.adapter is None else find_folder(source.adapter)
    if adapter is None or not (adapter / TOKENIZER_FILES[0]).is_file():
        return Tokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_pretrained(adapter)
    tokenizer.check_vocabulary(ModelConfig.from_hf(folder).text.vocab_size)
    return tokenizer


def load_processor(source: ModelSource, policy: MediaPolicy | None = None) -> Processor:
    """Loads what turns conversations with images and videos into inputs, with the tokenizer of ``load_tokenizer``.

    Args:
      policy: what may be opened; by default files, and no addresses.

    Raises:
      FileNotFoundError, ValueError: as ``load_tokenizer`` does, or a file of sizes is malformed.
    """
    processor = Processor.from_pretrained(find_folder(_named(source)), policy)
    processor.tokenizer = load_tokenizer(source)
    return processor


def _named(source: ModelSource) -> str:
    if not source.path:
        raise ValueError("no model is named; give --model.path DIR, the folder of a Hugging Face checkpoint.")
    return source.path
