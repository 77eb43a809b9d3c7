"""Think blocks, sample files and evaluation directories."""

import json

import pytest

from eval.protocols import Protocol
from eval.samples import Reply, SampleFile, check_directory, make_sample, open_directory
from eval.tasks.base import Document, Verdict
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


def judged(response):
    return Verdict(response == "4", {"accuracy": [response == "4"], "length": [2.5]}, response, parsed=response != "?")


@pytest.mark.parametrize(
    ("response", "reason", "outcome", "right"),
    [
        ("4", "stop", "ok", (True, True)),
        ("4", "budget", "ok", (True, True)),
        ("4", None, "ok", (True, True)),
        ("5", "stop", "ok", (False, False)),
        ("?", "stop", "unparsed", (False, False)),
        (" \n", "stop", "empty", (False, False)),
        ("4", "length", "truncated", (False, True)),
        ("", "length", "truncated", (False, False)),
        ("4", "loop", "loop", (False, True)),
        ("4", "aborted", "error", (False, False)),
        ("", "error", "error", (False, False)),
    ],
)
def test_each_sample_has_one_outcome_and_a_cut_one_counts_by_the_protocol(response, reason, outcome, right):
    document, reply = Document(1, [], judged), Reply(None, response, reason)
    for wrong, correct in zip((True, False), right, strict=True):
        stored = make_sample(document, reply, Protocol("here", cut_is_wrong=wrong))
        assert (stored["outcome"], stored["correct"]) == (outcome, correct)
        lost = outcome == "error" or (wrong and outcome in ("truncated", "loop"))
        assert stored["metrics"] == {"accuracy": [float(correct)], "length": [0.0 if lost else 2.5]}


def sample(number, **fields):
    return {"id": number, "repeat": 0, "response": f"answer {number}", "token_ids": [1] * number} | fields


def test_a_sample_that_was_cut_short_is_forgotten(tmp_path, caplog):
    path = tmp_path / "s.jsonl"
    SampleFile(path).append(sample(1, response="é\n\u2028"))
    with path.open("a") as file:
        file.write('{"id": 2, "resp')
    again = SampleFile(path)
    assert list(again.finished) == [("1", 0)]
    assert "cut short" in caplog.text
    again.append(sample(2))
    whole = SampleFile(path)
    assert list(whole.finished) == [("1", 0), ("2", 0)]
    assert whole.read(("1", 0)) == sample(1, response="é\n\u2028")
    assert SampleFile(tmp_path / "absent.jsonl").finished == {}


def test_of_a_sample_only_what_is_small_is_held(tmp_path):
    file = SampleFile(tmp_path / "s.jsonl")
    file.append(sample(3))
    assert file.finished["3", 0] == {"id": 3, "repeat": 0, "num_tokens": 3}
    assert SampleFile(file.path).finished == file.finished


def test_finished_samples_are_put_in_order(tmp_path):
    file = SampleFile(tmp_path / "s.jsonl")
    for number in (3, 1, 2):
        file.append(sample(number))
    file.sort([("1", 0), ("2", 0), ("3", 0)])
    assert [json.loads(line)["id"] for line in file.path.open()] == [1, 2, 3]
    file.append(sample(4))
    assert file.read(("4", 0)) == sample(4) and file.read(("2", 0)) == sample(2)


def test_files_of_processes_that_are_gone_are_taken_over(tmp_path):
    mine, other = SampleFile(tmp_path / "s.jsonl"), SampleFile(tmp_path / "s.process1.jsonl")
    mine.append(sample(1))
    other.append(sample(1, response="later"))
    other.append(sample(2))
    mine.absorb([other.path])
    assert mine.read(("1", 0)) == sample(1) and mine.read(("2", 0)) == sample(2)
    assert not other.path.exists()


@pytest.mark.parametrize("line", ["{broken", "[]", '{"response": "no id"}'])
def test_a_damaged_sample_file_is_refused(tmp_path, line):
    path = tmp_path / "s.jsonl"
    path.write_text(f'{{"id": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"s\.jsonl:2: not a stored sample"):
        SampleFile(path)


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
