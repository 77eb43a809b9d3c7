"""Small pictures and data files in the layouts of the hub and of VLMEvalKit."""

import base64
import csv
import io

import pyarrow
import pyarrow.parquet
from PIL import Image

from eval.tasks import get_task


def png(color="red", size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def base64_of(content):
    return base64.b64encode(content).decode()


def write_tsv(path, rows):
    """Writes rows as pandas does, with quotes only where a field needs them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows, group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def load(task, folder, protocol="card", **settings):
    return get_task(task).load(protocol, str(folder), **settings).documents


def parts_of(document):
    """The content of a document's only message, its images by their digest."""
    (message,) = document.messages
    assert message["role"] == "user"
    return message["content"]


def text_of(document):
    return "".join(part["text"] for part in parts_of(document) if part["type"] == "text")
