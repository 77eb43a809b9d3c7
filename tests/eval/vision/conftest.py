"""Data with images, and servers that are asked again at once."""

import pytest

from eval.backends.client import Client
from tests.eval.vision.asked import BLUE, RED
from tests.eval.vision.pictures import write_parquet


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Client, "first_wait", 0.001)


@pytest.fixture
def data(tmp_path):
    rows = [
        {"id": f"validation_Art_{number}", "question": f"What is {'it' if number == 1 else number}?",
         "options": "['red', 'blue']", "image_1": {"bytes": image, "path": None}, "answer": "A",
         "question_type": "multiple-choice"}
        for number, image in enumerate((RED, BLUE), start=1)
    ]  # fmt: skip
    write_parquet(tmp_path / "data" / "mmmu" / "validation.parquet", rows)
    return tmp_path
