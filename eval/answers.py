"""Reads stored answers: our own rows ``{"id", "response"}``, and files as other evaluations write them.

- MMMU's authors: a folder with ``SUBJECT/output.json``, one such file, or an object of parsed answers by id; a folder
  with ``SUBJECT.json``;
- MathVista's: an object of rows by ``pid`` with ``response``, and ``extraction`` if a language model has read it;
- OCRBench's: a list of rows with ``predict``;
- VLMEvalKit's: JSON, CSV or TSV with ``index`` and ``prediction``;
- Qwen's: JSONL with ``question_id``, ``annotation`` and ``result.gen``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.tasks.data import Row, read_rows

# What others call the two fields, in the order in which they are looked for.
_IDS = ("id", "pid", "index", "question_id", "key", "uuid")
_RESPONSES = ("response", "prediction", "predict", "value")
_WORKBOOKS = (".xlsx", ".xls")


def files_of(path: Path) -> list[Path]:
    """Returns the files that answers are read from: the file itself, or those of a folder.

    Raises:
      ValueError: a folder holds none, or a file is a workbook.
    """
    if not path.is_dir():
        if path.suffix in _WORKBOOKS:
            raise ValueError(f"{path} is a workbook; save its sheet as CSV or TSV, and give that.")
        return [path]
    for name in ("output.json", "parsed_output.json"):
        if found := sorted(path.rglob(name)):
            return found
    if found := sorted(each for each in path.iterdir() if each.suffix in (".json", ".jsonl")):
        return found
    raise ValueError(f"{path} is a folder without SUBJECT/output.json or SUBJECT.json; give a file, or such a folder.")


def read_answers(path: Path) -> list[Row]:
    """Returns the rows of a file or folder of answers, each with ``id`` and ``response``.

    Raises:
      ValueError: it cannot be read, or a row has no id or no response.
    """
    rows = [row for file in files_of(path) for row in read_rows(file)]
    return [_answer(Row(row.fields, row.where, number)) for number, row in enumerate(rows)]


def _answer(row: Row) -> Row:
    fields = _flat(row.fields)
    for name, others in (("id", _IDS), ("response", _RESPONSES)):
        known = [other for other in others if other in fields]
        if not known and not (name == "id" and "predict" in fields):
            raise ValueError(
                f"{row.where}: no field {name!r}; the row has {sorted(row.fields)}, and a row to score is "
                '{"id": ..., "response": ...}.'
            )
        # Of OCRBench's authors the place of a row is its id.
        fields[name] = fields[known[0]] if known else row.number
    response = fields["response"]
    if response is None and "extraction" in fields:  # MathVista's, where the model gave an error
        fields["response"] = ""
    elif type(response) in (int, float):  # tables of others hold numbers where the text is one, and NaN for none
        fields["response"] = "" if response != response else str(response)
    return Row(fields, row.where, row.number)


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a row, and those that Qwen's rows have in ``annotation`` and ``result``."""
    annotation, result = (fields.get(name) for name in ("annotation", "result"))
    if "response" in fields or not (isinstance(result, Mapping) and "gen" in result):
        return dict(fields)
    return {**(annotation if isinstance(annotation, Mapping) else {}), **fields, "response": result["gen"]}


def questions_in(rows: list[Row], names: tuple[str, ...]) -> bool:
    """Whether rows of answers have all fields that make them questions too."""
    return bool(names) and all(name in row.fields for row in rows for name in names)


def extraction_of(row: Row) -> dict[str, Any]:
    """Returns what a stored row says of a judge that has read it; ``stored`` where nobody knows who it was."""
    if "judge" in row.fields and "outcome" in row.fields:  # MMMU's authors call their verdict so
        return {"judge": row.get("judge", str), "extraction": row.fields.get("extraction")}
    if row.fields.get("extraction") is None:
        return {}
    return {"judge": "stored", "extraction": row.fields["extraction"]}
