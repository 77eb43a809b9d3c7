"""Think blocks, sample files and evaluation directories."""

import json

import pytest

from eval.samples import append_sample, check_directory, open_directory, read_finished
from qwen35_jax.processing.thinking import split_text


@pytest.mark.parametrize(
    ("text", "inside", "thinking", "response"),
    [
        ("so\n</think>\n\n42", True, "so", "42"),
        ("<think>\nso\n</think>\n\n42\n", True, "so", "42\n"),
        ("never closed", True, "never closed", ""),
        ("", True, "", ""),
        ("</think>", True, "", ""),
        ("a</think>b</think>c", True, "a", "b</think>c"),
        ("42", False, None, "42"),
        ("\n 42", False, None, "\n 42"),
        ("<think>\nso\n</think>\n\n42", False, "so", "42"),
        (" <think>cut", False, "cut", ""),
        ("so</think>42", False, "so", "42"),
    ],
)
def test_split_thinking(text, inside, thinking, response):
    split = split_text(text, opened=inside or None)
    assert (split.thinking, split.answer) == (thinking, response)


def test_a_sample_that_was_cut_short_is_forgotten(tmp_path, caplog):
    path = tmp_path / "s.jsonl"
    append_sample(path, {"id": 1, "response": "é\n\u2028"})
    with path.open("a") as file:
        file.write('{"id": 2, "resp')
    assert list(read_finished(path)) == [("1", 0)]
    assert "cut short" in caplog.text
    append_sample(path, {"id": 2, "response": "again"})
    assert list(read_finished(path)) == [("1", 0), ("2", 0)]
    assert read_finished(path)["1", 0]["response"] == "é\n\u2028"
    assert read_finished(tmp_path / "absent.jsonl") == {}


@pytest.mark.parametrize("line", ["{broken", "[]", '{"response": "no id"}'])
def test_a_damaged_sample_file_is_refused(tmp_path, line):
    path = tmp_path / "s.jsonl"
    path.write_text(f'{{"id": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"s\.jsonl:2: not a stored sample"):
        read_finished(path)


def test_a_directory_belongs_to_its_settings(tmp_path):
    out = tmp_path / "a" / "b"
    settings = {"tasks": ("qa",), "limit": None}
    check_directory(out, settings)
    open_directory(out, settings)
    check_directory(out, settings)
    assert json.loads((out / "config.json").read_text()) == {"tasks": ["qa"], "limit": None}
    with pytest.raises(ValueError, match=r"made with other settings \(limit; limit was None, now 3\)"):
        check_directory(out, settings | {"limit": 3})


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no evaluation"):
        check_directory(tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        check_directory(tmp_path, {})
