"""What is expected of the benchmarks before one is run: documents, patches of images, tokens of prompts and responses.

Every figure says where it comes from. Where nobody has measured it is an assumption and says so.
"""

from typing import NamedTuple

from eval.protocols import Mode, ProtocolName, Style
from qwen35_jax.presets import Modality


class Expected(NamedTuple):
    """A figure, and where it comes from."""

    value: int
    source: str


DOCUMENTS: dict[str, dict[str, int]] = {
    "mmlu_pro": {"test": 12_032},
    "mmlu_redux": {"test": 5_700},
    "ceval": {"val": 1_346, "test": 12_342},
    "supergpqa": {"train": 26_529},
    "ifeval": {"train": 541},
    "gsm8k": {"test": 1_319},
    "mmlu": {"test": 14_042},
    "gpqa_diamond": {"train": 198},
    "mmmu": {"validation": 900, "dev": 150},
    "mathvista": {"testmini": 1_000},
    "realworldqa": {"test": 765},
    "ocrbench": {"test": 1_000},
    "refcoco": {"test": 57_457},
    "videomme": {"test": 2_700},
    "videomme_no_subtitles": {"test": 2_700},
    # 1,164 questions are known from other people's tables, with about four orders of the options each.
    "mmbench": {"dev": 4_656},
}
"""Documents of each split; the first is the one that is scored by default."""

# Tokens of a solved example with its question and of a question alone: a paragraph each.
_QUESTION, _FIVE_SHOTS = 150, 1_800
# Of an image or a video: patches that become one token of the prompt.
_PATCHES_OF_TOKEN = 4
_SHOWN = {"image": 4_000, "video": 37_632}
# Of two frames, which share their patches: Qwen's code shows 512 frames of a long video.
_FRAME_PATCHES = {"image": None, "video": 147}
ANSWER_TOKENS = 700
"""Tokens of an answer without its thought: a page of text."""

# By mode, task and size of model; None stands for all others.
_RESPONSES: dict[tuple[Mode, str | None, str | None], Expected] = {
    ("thinking", None, None): Expected(
        9_000,
        "assumption: 415 million tokens over the 46,148 documents of five benchmarks, of the order of the 390 million "
        "that artificialanalysis.ai counted for the 2B over its index",
    ),
    # Two tokens are known of each distribution: its median, and the share of responses that did not end.
    ("thinking", "ifeval", "4b"): Expected(
        15_600, "0.368 x 32,768 + 0.632 x 5,623: share cut off and median in allenai/olmo-eval#399"
    ),
    ("thinking", "ifeval", "9b"): Expected(
        9_740, "0.192 x 32,768 + 0.808 x 4,268: share cut off and median in allenai/olmo-eval#399"
    ),
    ("thinking", "gsm8k", None): Expected(3_000, "assumption: a third of what harder benchmarks take"),
    ("non_thinking", None, None): Expected(ANSWER_TOKENS, "assumption: a page of text"),
    ("non_thinking", "gsm8k", None): Expected(300, "assumption: a worked solution"),
}


def expected_documents(task: str, split: str | None) -> Expected | None:
    """Returns the documents of a split; None where they are not known, as those of the user's own data."""
    splits = DOCUMENTS.get(task, {})
    name = next(iter(splits), None) if split is None else split
    return Expected(splits[name], f"split {name} of the published data") if name in splits else None


def expected_patches(modality: Modality) -> Expected | None:
    """Returns the patches of what a question shows; None for text."""
    shown = {"image": "an image of a megapixel", "video": "19,267,584 pixels of 512 frames, two of which share patches"}
    return Expected(_SHOWN[modality], f"assumption: {shown[modality]}") if modality in shown else None


def frame_patches(modality: Modality) -> int | None:
    """Returns how many patches attend to each other; None for an image, where all do."""
    return _FRAME_PATCHES.get(modality)


def expected_prompt(protocol: ProtocolName, shots: int, patches: Expected | None = None) -> Expected:
    """Returns the tokens of a prompt.

    Args:
      patches: of what the question shows.
    """
    if patches is not None:
        shown = patches.value // _PATCHES_OF_TOKEN
        return Expected(shown + _QUESTION, f"{shown:,} of what is shown, and an assumed question of {_QUESTION}")
    shown = f" with {shots} solved examples" if shots else ""
    return Expected(_FIVE_SHOTS * shots // 5 + _QUESTION, f"assumption: a question{shown}, protocol {protocol}")


def expected_response(task: str, mode: Mode, style: Style, size: str | None, limit: int) -> Expected:
    """Returns the mean tokens of a response, thinking included.

    Args:
      size: of a published model (``2b``); None for another, for which the 2B's figures count.
      limit: longest response.
    """
    if style == "text":
        found = Expected(300, "assumption: a solution as short as the solved examples")
    else:
        places = ((mode, task, size), (mode, task, None), (mode, None, None))
        found = next(_RESPONSES[place] for place in places if place in _RESPONSES)
    return found if found.value <= limit else Expected(limit, f"the longest allowed; without it {found.value:,}")
