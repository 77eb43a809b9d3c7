"""Shows what a run would train on, before any weight is loaded.

    python -m train.preview CONFIG.py [--data.path FILE] [--model.path DIR] [overrides]

Prints some examples with what is trained in colour (in brackets where there is no terminal), how long the examples
are, how many documents are left out and why, and how many tokens and steps an epoch has. It takes the overrides of
``python -m train.sft`` and reads all documents, which takes a CPU second for some 400,000 tokens.
"""

import dataclasses
import logging
import re
import sys
from collections.abc import Iterator, Sequence

from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.distributed import leave_out_absent_tpu
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_tokenizer
from qwen35_jax.processing import Tokenizer
from qwen35_jax.wording import options_as_typed, options_of
from train.config import TrainConfig
from train.data.documents import Documents, is_refused, policy_of
from train.data.epochs import count_batches
from train.data.masking import Example
from train.data.measure import describe, enough, histogram, measure
from train.data.vision import VisionReader

_NUM_EXAMPLES = 3
_MOST_CHARACTERS = 3000
_PADS = re.compile(r"(<\|(?:image|video)_pad\|>)\1+")
_COLOUR, _BRACKETS = ("\x1b[32m", "\x1b[0m"), ("\u27e6", "\u27e7")


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    leave_out_absent_tpu()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s", force=True)
    arguments = sys.argv[1:] if argv is None else argv
    with options_as_typed(lambda: options_of(TrainConfig)):
        config = config_from_command_line(arguments, TrainConfig, program="python -m train.preview")
        for line in preview(config, marks=_COLOUR if sys.stdout.isatty() else _BRACKETS):
            print(line)


def preview(config: TrainConfig, *, marks: tuple[str, str] = _BRACKETS) -> Iterator[str]:
    """Yields what the command prints, line by line.

    Args:
      marks: what stands before and after a trained stretch.

    Raises:
      ValueError: the data cannot be read, or no document of them can be used.
    """
    recipe = config.recipe
    tokenizer = load_tokenizer(recipe.model)
    # All that cannot be used is shown, where a run would stop at the first of it.
    vision = None
    if recipe.data.vision is not None:
        vision = VisionReader.from_pretrained(find_folder(recipe.model.path), recipe.data.vision, tokenizer)
    documents = Documents(dataclasses.replace(recipe.data, bad_rows="drop", long_rows="drop"), tokenizer, vision)
    documents.check()
    yield from _examples(documents, tokenizer, marks)
    found = measure(documents, whole=True)
    yield "== lengths"
    yield from histogram(found)
    yield "== documents"
    yield from describe(found, recipe.data, recipe.steps)
    yield from (f"  {reason}, for example {place}" for reason, place in found.places.items())
    if refused := [reason for reason in found.lost if is_refused(reason, recipe.data)]:
        options = sorted({f"--data.{policy_of(reason).replace('_', '-')} drop" for reason in refused})
        yield f"  the run would stop at the first {' or '.join(refused)}; mend these rows, or give {' '.join(options)}"
    if found.share_lost > recipe.data.max_lost:
        limit = f"data.max_lost={recipe.data.max_lost:g}"
        yield f"  more than {limit}: the run would not start; to train on the rest give {enough(found)}"
    if recipe.data.epochs is not None:
        yield f"{recipe.data.epochs} epochs fill {count_batches(documents, found):,} steps"


def _examples(documents: Documents, tokenizer: Tokenizer, marks: tuple[str, str]) -> Iterator[str]:
    """Yields the first usable documents of the order as text."""
    shown = 0
    for position in range(documents.epoch_length):
        [document] = documents.load([position])
        usable = [example for example in document if isinstance(example, Example)]
        for example in usable[: _NUM_EXAMPLES - shown]:
            shown += 1
            yield f"== {documents.where(position)}: {len(example)} tokens, {int(example.trained.sum())} trained"
            yield _abridged(render_marked(example, tokenizer, marks))
        if shown == _NUM_EXAMPLES:
            return


def render_marked(example: Example, tokenizer: Tokenizer, marks: tuple[str, str]) -> str:
    """Returns the text of an example, special tokens included, with marks around what is trained.

    The tokens of an image are counted.
    """
    before, after = marks

    def shown(start: int, end: int) -> str:
        text = tokenizer.decode(example.input_ids[start:end].tolist(), skip_special_tokens=False)
        return _PADS.sub(lambda pads: f"{pads[1]} x {len(pads[0]) // len(pads[1]):,}", text)

    parts, start = [], 0
    for end in range(1, len(example) + 1):
        if end == len(example) or example.trained[end] != example.trained[start]:
            text = shown(start, end)
            parts.append(f"{before}{text}{after}" if example.trained[start] else text)
            start = end
    return "".join(parts)


def _abridged(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"


if __name__ == "__main__":
    main()
