"""Reads stored answers: our own rows ``{"id", "response"}``, and files as other evaluations write them.

- MMMU's authors: a folder with ``SUBJECT/output.json``, one such file, or an object of parsed answers by id;
- MathVista's: an object of rows by ``pid`` with ``response``, and ``extraction`` if a language model has read it;
- OCRBench's: a list of rows with ``predict``;
- VLMEvalKit's: JSON, CSV or TSV with ``index`` and ``prediction``;
- Qwen's: JSONL with ``question_id`` and ``result.gen``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.tasks.data import Row, read_rows

# What others call the two fields, in the order in which they are looked for.
_IDS = ("id", "pid", "index", "question_id", "key", "uuid")
_RESPONSES = ("response", "prediction", "predict", "value")


def read_answers(path: Path) -> list[Row]:
    """Returns the rows of a file or folder of answers, each with ``id`` and ``response``.

    Raises:
      ValueError: it cannot be read, or a row has no id or no response.
    """
    if not path.is_dir():
        return [_answer(row) for row in read_rows(path)]
    files = sorted(path.rglob("output.json"))
    if not files:
        raise ValueError(f"{path} is a folder without SUBJECT/output.json; give a file, or such a folder.")
    rows = [row for file in files for row in read_rows(file)]
    return [_answer(Row(row.fields, row.where, number)) for number, row in enumerate(rows)]


def _answer(row: Row) -> Row:
    fields = dict(row.fields)
    result = fields.get("result")
    if "response" not in fields and isinstance(result, Mapping) and "gen" in result:
        fields["response"] = result["gen"]
    for name, others in (("id", _IDS), ("response", _RESPONSES)):
        known = [other for other in others if other in fields]
        if not known and not (name == "id" and "predict" in fields):
            raise ValueError(
                f"{row.where}: no field {name!r}; the row has {sorted(row.fields)}, and a row to score is "
                '{"id": ..., "response": ...}.'
            )
        # Of OCRBench's authors the place of a row is its id.
        fields[name] = fields[known[0]] if known else row.number
    if fields["response"] is None and "extraction" in fields:  # MathVista's, where the model gave an error
        fields["response"] = ""
    return Row(fields, row.where, row.number)


def questions_in(rows: list[Row], names: tuple[str, ...]) -> bool:
    """Whether rows of answers have all fields that make them questions too."""
    return bool(names) and all(name in row.fields for row in rows for name in names)


def extraction_of(row: Row) -> dict[str, Any]:
    """Returns what a stored row says of a judge that has read it; ``stored`` where nobody knows who it was."""
    if "judge" in row.fields:
        return {"judge": row.get("judge", str), "extraction": row.fields.get("extraction")}
    if row.fields.get("extraction") is None:
        return {}
    return {"judge": "stored", "extraction": row.fields["extraction"]}
