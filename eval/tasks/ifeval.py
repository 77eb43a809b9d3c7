"""IFEval: prompts with instructions that a program can check (arXiv:2311.07911).

The benchmark gives prompts and verifiers; all protocols ask and score alike and differ in sampling only. The verifiers
are those of lm-evaluation-harness. Three things there depend on chance or on the network, and are fixed here:

- The language detector draws random numbers. It is seeded.
- Two prompts of the benchmark ask for a character that is no letter, for which the verifier draws a letter. The draw is
  seeded by key and instruction.
- The import of the verifiers downloads the sentence splitter's data. The data is looked for first and never downloaded.

Beside the four official metrics stand four with the ending ``_fixed``, for which ``eval.scorers.instruction_repairs``
takes the place of the verifiers that do not check what they say. The official ones are those to compare with published
figures.
"""

import importlib
import random
from collections.abc import Mapping, Sequence
from typing import Any
from typing import Protocol as Interface

from eval.protocols import Protocol, ProtocolName
from eval.scorers.instruction_repairs import repair
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data, HubFiles, Row, folder_of_data
from qwen35_jax import gcs

PUNKT = "tokenizers/punkt_tab/english/"
_NLTK_DATA = "nltk_data"


class Instruction(Interface):
    """One verifiable instruction with its arguments."""

    def check_following(self, value: str) -> bool:
        """Returns whether the response follows the instruction."""


def prepare(data_dir: str | None) -> None:
    """Makes the verifiers ready, with the splitter's data from NLTK's own places or ``DATA_DIR/nltk_data``.

    Raises:
      ValueError: the packages or the data are not there; says how to get them.
    """
    nltk = _import("nltk")
    copied = None if data_dir is None else folder_of_data(data_dir, _NLTK_DATA)
    if copied is not None and str(copied) not in nltk.data.path:
        nltk.data.path.insert(0, str(copied))
    try:
        nltk.data.find(PUNKT)
    except LookupError as err:
        parent = "~" if data_dir is None or gcs.is_address(data_dir) else data_dir.rstrip("/")
        raise ValueError(
            "IFEval needs NLTK's sentence splitter data punkt_tab (English), which is in none of "
            f"{nltk.data.path}; run `python -m nltk.downloader -d {parent}/{_NLTK_DATA} punkt_tab` where there is a "
            f"network, or copy that folder there, or set NLTK_DATA to a folder that holds {PUNKT}."
        ) from err
    _import("langdetect").DetectorFactory.seed = 0
    _verifiers()


def build_instructions(
    key: int, names: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]
) -> list[Instruction]:
    """Returns the verifiers of one prompt, after ``prepare``.

    Args:
      key: the prompt's key; seeds what the benchmark leaves to chance.
      names: instruction ids such as ``"punctuation:no_comma"``.
      arguments: of each instruction; None stands for absent, as in the hub's columns.

    Raises:
      ValueError: an unknown instruction, or arguments that it does not take.
    """
    verifiers = _verifiers()
    before = random.getstate()
    instructions = []
    try:
        for index, (name, given) in enumerate(zip(names, arguments, strict=True)):
            if name not in verifiers:
                raise ValueError(f"instruction {name!r} does not exist; known ones are {sorted(verifiers)}.")
            instruction = verifiers[name](name)
            random.seed(f"{key}:{index}")
            try:
                present = {argument: value for argument, value in (given or {}).items() if value is not None}
                instruction.build_description(**present)
            except (AttributeError, TypeError) as err:
                raise ValueError(f"instruction {name!r} does not take {given!r}: {err}") from err
            instructions.append(instruction)
    finally:
        random.setstate(before)
    return instructions


def follow_strict(instructions: Sequence[Instruction], response: str) -> list[bool]:
    """Returns for each instruction whether the response follows it."""
    return [_follows(instruction, response) for instruction in instructions]


def follow_loose(instructions: Sequence[Instruction], response: str) -> list[bool]:
    """Returns for each instruction whether a tidied form of the response follows it.

    The forms are the response without its first line (an introduction), without its last (a
    farewell), without both, and each of these and the whole without asterisks (Markdown emphasis).
    """
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    forms = [response, *cut]
    forms = dict.fromkeys([*forms, *(form.replace("*", "") for form in forms)])
    return [any(_follows(instruction, form) for form in forms) for instruction in instructions]


def _follows(instruction: Instruction, response: str) -> bool:
    if not response.strip():
        return False
    try:
        return bool(instruction.check_following(response))
    except RecursionError:  # thousands of opening brackets, which the JSON verifier cannot parse
        return False


def _verifiers() -> Mapping[str, type[Any]]:
    return _import("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        raise ValueError(f"IFEval needs the package {err.name}; install the extra: pip install -e '.[eval]'") from err


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    prompt, names, arguments = row.get("prompt", str), row.get("instruction_id_list", list), row.get("kwargs", list)
    key = row.get("key", int)
    if not names or len(names) != len(arguments):
        raise ValueError(
            f"{row.where}: {len(names)} instructions with {len(arguments)} kwargs; each instruction needs its own."
        )
    try:
        instructions = build_instructions(key, names, arguments)
    except ValueError as err:
        raise ValueError(f"{row.where}: {err}") from err

    repairs = {
        place: repaired
        for place, (name, given) in enumerate(zip(names, arguments, strict=True))
        if (repaired := repair(name, given)) is not None
    }

    def score(response: str) -> Verdict:
        strict = follow_strict(instructions, response)
        metrics: dict[str, list[float]] = {}
        for name, follow in (("strict", follow_strict), ("loose", follow_loose)):
            official = strict if name == "strict" else follow(instructions, response)
            fixed = dict(enumerate(official))
            fixed |= dict(zip(repairs, follow(list(repairs.values()), response), strict=True))
            for ending, followed in (("", official), ("_fixed", list(fixed.values()))):
                metrics[f"prompt_{name}{ending}"] = [all(followed)]
                metrics[f"instruction_{name}{ending}"] = [*followed]
        return Verdict(correct=all(strict), metrics=metrics)

    return Document(key, user_turn(prompt), score)


_PAPER = "https://arxiv.org/abs/2311.07911"

TASK = Task(
    name="ifeval",
    data=Data(
        splits=("test", "train"),
        hub=HubFiles("google/IFEval", "966cd89545d6b6acfd7638bc708b98261ca58e84", "ifeval_input_data.jsonl"),
    ),
    protocols={
        "card": Protocol(_PAPER),
        "official": Protocol(
            _PAPER, {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy", cut_is_wrong=False
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4 ifeval.yaml", {"thinking": 1_280, "non_thinking": 1_280}, sampling="greedy", cut_is_wrong=False
        ),
    },
    document=_document,
    headline="prompt_strict",
    prepare=prepare,
)
