"""RefCOCO, RefCOCO+ and RefCOCOg: 57,457 descriptions of an object in a photograph, whose box is asked for.

The first box of a response counts, in thousandths of the picture's width and height; it is right if its overlap with
the object's is at least 0.5 (IoU). The headline is the mean over the eight splits, RefCOCO and RefCOCO+ ``val``,
``testA``, ``testB``, RefCOCOg ``val``, ``test``, each of which counts the same. Other readings of coordinates are not
tried.

Both protocols ask as Qwen's team says that it does, and score so; they differ in how responses are drawn.

Data, in ``DATA_DIR/refcoco`` (their terms do not allow to hand them on), one of

- ``RefCOCO.tsv`` of mjuicem/RefCOCO-VLMEvalKit on the hub: ``index``, ``image``, ``question`` with the description in
  ``<ref></ref>``, ``split`` or ``category``, ``width``, ``height``, and ``bbox_x1`` to ``bbox_y2`` or ``answer`` in
  pixels;
- ``test.jsonl`` of your own: ``{"image", "description", "split", "bbox", "width", "height"}``, with the path of the
  image, the box as left, top, right and bottom in pixels, and the size of the image.
"""

import re
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.boxes import Box, as_box, first_box, overlap
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.data import Data, Row, listed
from eval.tasks.media import image_parts, images_of, user_parts
from eval.tasks.vision import group_of, text_of

SPLITS = (
    "RefCOCO_val", "RefCOCO_testA", "RefCOCO_testB", "RefCOCO+_val", "RefCOCO+_testA", "RefCOCO+_testB",
    "RefCOCOg_val", "RefCOCOg_test",
)  # fmt: skip
_IMAGES = ("image",)
_PROMPT = (
    'Locate every object that matches the description "{description}" in the image. Report bbox coordinates in JSON '
    "format."
)
_LEAST_OVERLAP = 0.5
# Of float64 sums: an overlap of exactly a half is right.
_ROUNDING = 1e-9
# Larger numbers are pixels; VLMEvalKit also reads shares of the width and height.
_MOST_OF_A_SHARE = 1.5
_REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
_ENDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    gold, split = _box(row), _split(row)

    def score(response: str) -> Verdict:
        box = first_box(response)
        found = 0.0 if box is None else overlap(box, gold)
        correct = found >= _LEAST_OVERLAP - _ROUNDING
        metrics: dict[str, list[float]] = {"accuracy": [correct], "overlap": [found]}
        return Verdict(correct, metrics, None if box is None else _written(box), parsed=box is not None)

    pictures = image_parts(images_of(row.fields, _IMAGES), PROTOCOLS[protocol].media)
    name = str(row.get("index", int, str)) if "index" in row.fields else row.own_id()
    return Document(
        # In the file of all splits an index counts anew in each.
        f"{split}_{name}" if "index" in row.fields else name,
        user_parts(*pictures, _PROMPT.format(description=_description(row))),
        score,
        group=split,
        target=_written(gold),
    )


def _description(row: Row) -> str:
    if "description" in row.fields or "question" not in row.fields:
        return text_of(row, "description")
    question = row.get("question", str)
    marked = _REF.search(question)
    return (marked[1] if marked else question).strip()


def _split(row: Row) -> str:
    """Returns one of ``SPLITS``, which files also write as ``RefCOCO testA``."""
    written = group_of(row, "split", "category", "dataset") or ""
    name = re.sub(r"[\s_-]+", "_", written.strip(), count=1)
    found = [split for split in SPLITS if split.lower() == name.lower()]
    if not found:
        raise ValueError(f"{row.where}: split={written!r} is none of {', '.join(SPLITS)}.")
    return found[0]


def _box(row: Row) -> Box:
    """Returns the box of the object; raises ``ValueError`` if it or the size of the image is missing or wrong."""
    try:
        width, height = (float(row.get(name, int, float, str)) for name in ("width", "height"))
        if all(name in row.fields for name in _ENDS):
            ends = [float(row.fields[name]) for name in _ENDS]
        else:
            is_answer = "answer" in row.fields and "bbox" not in row.fields
            value = listed(row.get("answer" if is_answer else "bbox", str, list))
            ends = [float(end) for end in value]
        left, top, right, bottom = ends
    except (TypeError, ValueError) as err:
        raise ValueError(f"{row.where}: no box of four numbers in pixels with width and height ({err}).") from err
    if not (0 <= left < right <= width + 1 and 0 <= top < bottom <= height + 1):
        raise ValueError(
            f"{row.where}: the box {ends} does not lie in an image of {width:g} x {height:g} pixels; give left, top, "
            "right and bottom in pixels."
        )
    if max(ends) <= _MOST_OF_A_SHARE:
        return as_box(ends)
    return as_box([left / width, top / height, right / width, bottom / height])


def _written(box: Box) -> str:
    return f"[{', '.join(f'{1000 * end:.0f}' for end in box)}]"


_SOURCE = "https://github.com/QwenLM/Qwen3-VL/issues/1721"
PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol(_SOURCE, modality="image"),
    "official": Protocol(
        _SOURCE, {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy", cut_is_wrong=False, modality="image"
    ),
}

TASK = Task(
    name="refcoco",
    data=Data(splits=("test",), files=("RefCOCO.tsv",), images=_IMAGES),
    protocols=PROTOCOLS,
    document=_document,
    macro=True,
    headline_macro=True,
    id_field="index",
)
