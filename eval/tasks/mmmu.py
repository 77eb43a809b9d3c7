r"""MMMU: 900 questions of 30 college subjects, each with one to seven pictures (arXiv:2311.16502; Apache-2.0).

| protocol | prompt | answer |
|---|---|---|
| card | pictures, then question and options, as Qwen's published code for its vision models asks | see below |
| official | the authors': pictures where the text has ``<image 1>``, one direct answer | ``eval.scorers.mmmu`` |

Under ``card`` the letter is the one that VLMEvalKit's rule finds, which Qwen's code has too, or else the last one that
the response states. To an open question (53 of 900) Qwen's code offers the right answer as A and ``Other Answers`` as B
when it reads the response; where that finds nothing, the final number or text of the response is compared. What then is
left Qwen gives to a judge, and here stays unparsed unless there is one.

The authors guess where their rule finds no letter. Here such a response is wrong in ``accuracy``, and the metric
``accuracy_random_fallback`` counts it as what a guess is expected to gain.

Data: MMMU/MMMU on the hub, or VLMEvalKit's ``MMMU_DEV_VAL.tsv``. A file of answers in the authors' layout
(``SUBJECT/output.json``) holds what scoring needs of the questions. For ``total_val_output.json``, which has parsed
answers alone, put the authors' ``answer_dict_val.json`` into ``DATA_DIR/mmmu``.
"""

import re
from collections.abc import Mapping, Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.exact_match import final_number, final_text, normalize
from eval.scorers.mmmu import is_right, read_choice, read_open
from eval.scorers.numbers import number
from eval.scorers.options import inferred_option
from eval.tasks.base import Document, Judging, Message, Task, Verdict
from eval.tasks.choices import LETTERS, letter_verdict
from eval.tasks.data import Data, HubFiles, Row, listed
from eval.tasks.media import Part, image_parts, images_of, user_parts
from eval.tasks.vision import QWEN, choice_judging, chosen, options_of, qwen_prompt, text_of

SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
    "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography",
    "History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music",
    "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
)  # fmt: skip
_IMAGES = (*(f"image_{number}" for number in range(1, 8)), "image")
_DIRECT = "Answer with the option's letter from the given choices directly."
_SHORT = "Answer the question using a single word or phrase."
_MENTION = re.compile(r"<image (\d)>")
_CHOICE = "multiple-choice"
# The hub's word, and the authors' in their key.
_OPEN = ("open", "short-answer")


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, gold, options = text_of(row, "question"), _gold(row), _options(row)
    has_choices = _has_choices(row, options)
    if has_choices and options and not set(gold) <= options.keys():
        raise ValueError(f"{row.where}: answer={gold!r}; the letters of its {len(options)} options are {[*options]}.")
    options = options if has_choices else {}
    name = row.get("id" if "id" in row.fields else "index", int, str)
    card = _score_choice_card if has_choices else _score_open_card
    official = _score_choice if has_choices else _score_open
    score = card if protocol == "card" else official
    return Document(
        name,
        _messages(row, protocol, question, options, has_choices=has_choices),
        lambda response: score(response, gold, options),
        group="_".join(str(name).split("_")[1:-1]) or None,
        target=" or ".join(gold),
        judging=_judging(question, gold, options, has_choices=has_choices),
    )


def _has_choices(row: Row, options: Mapping[str, str]) -> bool:
    """Whether the options of a row belong to its question; raises ``ValueError`` if a prompt lacks them."""
    is_said = row.fields.get("question_type") not in (None, "")
    is_choice = row.one_of("question_type", _CHOICE, *_OPEN) == _CHOICE if is_said else bool(options)
    has_columns = any(name in row.fields for name in ("options", "index2ans", LETTERS[0]))
    if row.asked and not options and (is_choice or not (is_said or has_columns)):
        raise ValueError(
            f"{row.where}: no field 'options'; the row has {sorted(row.fields)}, and the question_type of a question "
            "without options is open."
        )
    return is_choice


def _gold(row: Row) -> list[str]:
    """Returns the right answers of a row: of a question with options, letters."""
    values = {name: listed(row.get(name, str, list)) for name in ("answer", "ground_truth") if name in row.fields}
    if not values:
        raise ValueError(f"{row.where}: no field 'answer' or 'ground_truth'; the row has {sorted(row.fields)}.")
    if len(values) == 2 and values["answer"] != values["ground_truth"]:
        raise ValueError(
            f"{row.where}: the file of answers says answer={values['answer']!r}, the key {values['ground_truth']!r}."
        )
    value = next(iter(values.values()))
    return [str(each) for each in value] if isinstance(value, list) else [value]


def _options(row: Row) -> dict[str, str]:
    """Returns the options by letter: a list, as the hub has them, the authors' ``index2ans``, or columns."""
    found = row.fields.get("index2ans")
    if isinstance(found, Mapping):
        return {str(letter): str(option) for letter, option in found.items()}
    options = listed(row.fields.get("options"))
    if options in (None, ""):
        return options_of(row)
    if not isinstance(options, list) or len(options) > len(LETTERS):
        raise ValueError(f"{row.where}: options={options!r} is no list of at most {len(LETTERS)} texts.")
    return dict(zip(LETTERS, map(str, options), strict=False))


def _messages(
    row: Row, protocol: ProtocolName, question: str, options: Mapping[str, str], *, has_choices: bool
) -> list[Message]:
    pictures = image_parts(images_of(row.fields, _IMAGES), PROTOCOLS[protocol].media)
    if protocol == "card":
        return user_parts(*pictures, qwen_prompt(question, options))
    if not has_choices:
        return user_parts(*_interleaved(f"{question}\n{_SHORT}", pictures))
    choices = "".join(f"({letter}) {option}\n" for letter, option in options.items())
    return user_parts(*_interleaved(f"{question}\n{choices}\n{_DIRECT}", pictures))


def _interleaved(text: str, pictures: Sequence[Part]) -> list[Part | str]:
    """Puts each picture where the text first mentions it; those that it never mentions come first."""
    mentioned = {int(number) - 1 for number in _MENTION.findall(text)}
    parts: list[Part | str] = [part for place, part in enumerate(pictures) if place not in mentioned]
    placed: set[int] = set()
    end = 0
    for mention in _MENTION.finditer(text):
        place = int(mention[1]) - 1
        if place < len(pictures) and place not in placed:
            placed.add(place)
            parts += [text[end : mention.start()], pictures[place]]
            end = mention.end()
    return [part for part in [*parts, text[end:]] if part]


def _score_choice(response: str, gold: Sequence[str], options: Mapping[str, str]) -> Verdict:
    # Without options the response is what the authors' parse has left of it.
    letter = read_choice(response, options) if options else response
    guess = 1 / len(options) if letter is None else float(letter in gold)
    return letter_verdict(letter, _target(letter, gold), accuracy_random_fallback=[guess])


def _score_open(response: str, gold: Sequence[str], options: Mapping[str, str]) -> Verdict:
    answers = read_open(response)
    correct = is_right(answers, gold)
    metrics: dict[str, list[float]] = {"accuracy": [correct], "accuracy_random_fallback": [correct]}
    return Verdict(correct, metrics, "; ".join(sorted(map(str, answers))))


def _score_choice_card(response: str, gold: Sequence[str], options: Mapping[str, str]) -> Verdict:
    letter = chosen(response, options)
    return letter_verdict(letter, _target(letter, gold))


def _target(letter: str | None, gold: Sequence[str]) -> str:
    """Returns the right letter that a letter is compared with."""
    return letter if letter is not None and letter in gold else gold[0]


def _score_open_card(response: str, gold: Sequence[str], options: Mapping[str, str]) -> Verdict:
    numeric = all(number(normalize(each)) is not None for each in gold)
    found = final_number(response) if numeric else final_text(response)
    correct = (
        any(inferred_option(response, _as_choice(each)) == "A" for each in gold)
        or (found is not None and normalize(found) in map(normalize, gold))
    )  # fmt: skip
    # A text in other words may be right all the same, which only a judge can see.
    return Verdict(correct, {"accuracy": [correct]}, found, parsed=correct or (numeric and found is not None))


def _as_choice(gold: str) -> dict[str, str]:
    return {"A": gold, "B": "Other Answers"}


def _judging(question: str, gold: Sequence[str], options: Mapping[str, str], *, has_choices: bool) -> Judging:
    if has_choices:
        return choice_judging(question, options, gold[0])
    return choice_judging(question, _as_choice(" or ".join(gold)), "A")


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol(
        f"{QWEN}/mmmu (VLMEvalKit's prompt and rule)", modality="image",
        media={"min_pixels": 1280 * 28 * 28, "max_pixels": 5120 * 28 * 28},
    ),
    "official": Protocol(
        "https://github.com/MMMU-Benchmark/MMMU", {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy",
        cut_is_wrong=False, modality="image",
    ),
}  # fmt: skip

TASK = Task(
    name="mmmu",
    data=Data(
        splits=("validation", "dev"),
        hub=HubFiles("MMMU/MMMU", "98e6ac0cb9b7b2cd2c991b85a50762edc4aedc68", "{part}/{split}-00000-of-00001.parquet"),
        parts=SUBJECTS,
        files=("MMMU_DEV_VAL.tsv", "answer_dict_val.json"),
        images=_IMAGES,
    ),
    protocols=PROTOCOLS,
    document=_document,
    question_fields=("question_type", "answer"),
)
