"""MMBench EN-DEV-v1.1: about 1,200 questions of perception and reasoning (arXiv:2307.06281; Apache-2.0).

Every question is asked as often as it has options, with these in another order each time; the file has all orders. The
metric ``circular``, the headline, counts a question as right if it is right in every order. ``vanilla`` is the accuracy
in the first order alone, ``rotation`` that over all orders.

Both protocols ask by VLMEvalKit's prompt, the authors'. They read the letter by VLMEvalKit's rule; ``card`` then takes
the last one that the response states, ``official`` nothing, for which the authors have a judge.

Data: VLMEvalKit's ``MMBench_DEV_EN_V11.tsv`` (MD5 30c05be8f2f347a50be25aa067248184) in ``DATA_DIR/mmbench``. The orders
of a question have its index plus 1,000,000, 2,000,000 and so on. The file ``en/dev`` of lmms-lab/MMBench on the hub is
version 1.0, another benchmark.
"""

from collections import Counter
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.options import inferred_option
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.choices import letter_verdict
from eval.tasks.data import Data, Row
from eval.tasks.media import image_parts, images_of, user_parts
from eval.tasks.vision import QWEN, choice_judging, chosen, group_of, options_of, qwen_prompt, text_of

_IMAGES = ("image",)
_ORDERS_APART = 1_000_000
_SIZE = "orders"


def _index(row: Row) -> int:
    value = row.get("index", int, str)
    if not str(value).isdecimal():
        raise ValueError(f"{row.where}: index={value!r} is no whole number.")
    return int(value)


def _arrange(rows: list[Row]) -> list[Row]:
    """Puts the orders of each question side by side, and notes how many there are."""
    questions = [_index(row) % _ORDERS_APART for row in rows]
    sizes = Counter(questions)
    first = {question: place for place, question in reversed([*enumerate(questions)])}
    places = sorted(range(len(rows)), key=lambda place: (first[questions[place]], _index(rows[place])))
    return [
        Row(rows[place].fields | {_SIZE: sizes[questions[place]]}, rows[place].where, number)
        for number, place in enumerate(places)
    ]


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    index, options, target = _index(row), options_of(row), row.get("answer", str).strip()
    if target not in options:
        raise ValueError(f"{row.where}: answer={target!r} is the letter of none of the options {[*options]}.")
    question, is_first = text_of(row, "question"), index < _ORDERS_APART
    find = chosen if protocol == "card" else inferred_option

    def metrics(correct: bool) -> dict[str, list[float]]:
        value = [float(correct)]
        return {"rotation": value, "vanilla": value} if is_first else {"rotation": value}

    def verdict(found: Verdict) -> Verdict:
        return Verdict(found.correct, metrics(found.correct), found.prediction, found.parsed)

    judging = choice_judging(question, options, target)
    pictures = image_parts(images_of(row.fields, _IMAGES), PROTOCOLS[protocol].media)
    prompt = qwen_prompt(question, options, row.fields.get("hint") or None)
    return Document(
        index,
        user_parts(*pictures, prompt),
        lambda response: verdict(letter_verdict(find(response, options), target)),
        group=group_of(row, "l2-category", "category"),
        target=target,
        judging=type(judging)(judging.ask, lambda reply: verdict(judging.score(reply))),
        circle=(str(index % _ORDERS_APART), row.fields[_SIZE]),
    )


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol(f"{QWEN}/mmmu (VLMEvalKit's prompt and rule, which its MMBench has too)", modality="image"),
    "official": Protocol(
        "https://github.com/open-compass/VLMEvalKit (MMBench's authors)", {"thinking": 32_768, "non_thinking": 4_096},
        sampling="greedy", cut_is_wrong=False, modality="image",
    ),
}  # fmt: skip

TASK = Task(
    name="mmbench",
    data=Data(splits=("dev",), files=("MMBench_DEV_EN_V11.tsv",), images=_IMAGES),
    protocols=PROTOCOLS,
    document=_document,
    headline="circular",
    arrange=_arrange,
    id_field="index",
)
