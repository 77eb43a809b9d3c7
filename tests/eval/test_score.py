"""Scoring of stored responses, as a command."""

import json

import pytest

from eval.compare import main as compare
from eval.samples import SampleFile
from eval.score import main
from tests.eval.conftest import write_rows

QUESTIONS = [{"question": f"{n}+{n}?", "answer": f"work\n#### {2 * n}"} for n in range(4)]


@pytest.fixture
def command(tmp_path):
    """Runs the command on the given responses and returns the directory it wrote."""
    write_rows(tmp_path / "data" / "gsm8k" / "test.jsonl", QUESTIONS)

    def call(rows, *flags, task="gsm8k"):
        responses = write_rows(tmp_path / "responses.jsonl", rows)
        out = tmp_path / "out"
        data = ["--data-dir", str(tmp_path / "data")]
        main(["--task", task, "--responses", str(responses), *data, "--out", str(out), *flags])
        return out

    return call


ROWS = [
    {"id": 2, "response": "<think>\nhm 5\n</think>\n\n#### 4"},
    {"id": "0", "response": "It is 0."},
    {"id": 1, "response": "It is", "finish_reason": "length"},
    {"id": 3, "response": "6 and then 7"},
]


def test_responses_are_scored_in_the_order_of_the_documents(command, capsys):
    out = command(ROWS)
    results = json.loads((out / "results.json").read_text())
    task = results["tasks"]["gsm8k"]
    assert (task["n"], task["missing"]) == (4, 0)
    assert task["metrics"]["accuracy"]["value"] == 0.5
    assert task["metrics"]["strict"]["value"] == 0.25
    assert task["outcomes"] == {"ok": 3, "unparsed": 0, "truncated": 1, "loop": 0, "empty": 0, "error": 0}
    rows = [json.loads(line) for line in (out / "samples" / "gsm8k.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert (rows[2]["thinking"], rows[2]["response"]) == ("hm 5", "#### 4")
    assert (out / "report.html").exists() and (out / "config.json").exists()
    assert "accuracy" in capsys.readouterr().out
    first = (out / "results.json").read_text()
    assert "seconds" in first
    command(ROWS)
    assert len((out / "samples" / "gsm8k.jsonl").read_text().splitlines()) == 4


def test_a_sample_keeps_what_wrote_it(command):
    marks = {"engine": "e1", "template": "t1"}
    samples = scored(command([ROWS[0] | marks, ROWS[1]]))
    assert [{name: each[name] for name in marks} for each in samples] == [dict.fromkeys(marks), marks]


def test_a_page_does_not_say_how_many_were_cut_where_nobody_recorded_it(command):
    page = (command(ROWS[:2]) / "report.html").read_text()
    assert "Of 2 it is not recorded whether they were cut off." in page
    assert not any(told in page for told in ("cut off (truncated or loop)", "cut = wrong", "finished only"))


def test_documents_without_response_are_left_out_and_counted(command, caplog, capsys):
    results = json.loads((command(ROWS[:2]) / "results.json").read_text())
    assert (results["tasks"]["gsm8k"]["n"], results["tasks"]["gsm8k"]["missing"]) == (2, 2)
    assert "2 of 4 documents have no response" in caplog.text
    assert "gsm8k: 2 samples of 2 documents, 2 left out without a response; ok 2" in capsys.readouterr().out


def scored(out, task="gsm8k"):
    return [json.loads(line) for line in (out / "samples" / f"{task}.jsonl").read_text().splitlines()]


def test_a_row_with_thinking_is_taken_as_it_stands(command):
    rows = [
        {"id": 0, "response": "a</think>#### 0", "thinking": None},
        {"id": 1, "response": "<think>#### 2", "thinking": "hm", "finish_reason": "length", "token_ids": [1, 2]},
        {"id": 2, "response": "", "thinking": "cut", "multiple_closes": 0, "repeat": 0},
    ]
    samples = scored(command(rows, "--opened"))
    assert [(each["thinking"], each["response"]) for each in samples] == [
        (row["thinking"], row["response"]) for row in rows
    ]
    assert [each["multiple_closes"] for each in samples] == [1, 0, 0]
    assert samples[1]["token_ids"] == [1, 2]


HALF = "It is 0, \ud83d"


def test_half_a_surrogate_pair_is_kept(command, capsys):
    path = command([{"id": 0, "response": HALF, "thinking": "\udc00"}]) / "samples" / "gsm8k.jsonl"
    sample = json.loads(path.read_text(encoding="utf-8"))
    assert (sample["response"], sample["thinking"]) == (HALF, "\udc00")
    # What was written is read again: by the file's own reader, and as responses.
    assert SampleFile(path).read(("0", 0))["response"] == HALF
    stored = json.loads(json.dumps(sample))
    out = command([stored], "--protocol", "card", "--out", str(path.parents[2] / "again"))
    assert scored(out.parent / "again")[0]["response"] == HALF
    compare([str(out), str(out.parent / "again"), "--common"])
    assert "gsm8k" in capsys.readouterr().out


def test_what_a_server_or_an_engine_said_of_its_tokens_is_kept(command):
    row = {"id": 0, "response": "0", "thinking": None, "num_tokens": 7, "engine": "e1", "template": "t1"}
    out = command([row])
    assert {name: scored(out)[0][name] for name in row} == row
    assert json.loads((out / "results.json").read_text())["tasks"]["gsm8k"]["lengths"]["max"] == 7


def test_a_published_figure_is_told_beside_stored_responses(tmp_path, capsys):
    row = {"uuid": "u", "question": "q", "options": ["a", "b"], "answer_letter": "B", "discipline": "d"}
    write_rows(tmp_path / "supergpqa" / "train.jsonl", [row])
    responses = write_rows(tmp_path / "r.jsonl", [{"id": "u", "response": "hm</think>Answer: B"}])
    command = ["--task", "supergpqa", "--responses", str(responses), "--data-dir", str(tmp_path), "--opened"]
    main([*command, "--size", "2b"])
    assert "+62.50 from the 37.5 of 2B's card: inside the interval" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--size", "9b", "--out", str(tmp_path / "out")])
    assert "--size 9b: no figure of supergpqa in mode thinking is published" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_opened_says_that_the_prompt_had_opened_the_think_block(command):
    rows = [
        {"id": 0, "response": "#### 0"},
        {"id": 1, "response": "#### 2", "finish_reason": "length"},
        {"id": 2, "response": "hm\n</think>\n\n#### 4"},
    ]
    samples = scored(command(rows, "--opened"))
    assert [(each["thinking"], each["response"]) for each in samples] == [
        ("#### 0", ""),
        ("#### 2", ""),
        ("hm", "#### 4"),
    ]
    assert [each["outcome"] for each in samples] == ["empty", "truncated", "ok"]


def test_several_responses_to_a_document_are_averaged_first(command):
    rows = [{"id": 0, "response": "0", "repeat": repeat} for repeat in (2, 0, 1)] + [{"id": 1, "response": "7"}]
    out = command(rows)
    task = json.loads((out / "results.json").read_text())["tasks"]["gsm8k"]
    assert (task["n"], task["samples"], task["metrics"]["accuracy"]["value"]) == (2, 4, 0.5)
    assert [(each["id"], each["repeat"]) for each in scored(out)] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_protocol_chooses_the_rules(command):
    results = json.loads((command(ROWS, "--protocol", "lm-eval") / "results.json").read_text())
    # "0." has two characters and ends in a point, so flexible-extract takes both and drops the point.
    assert results["tasks"]["gsm8k"]["metrics"]["accuracy"]["value"] == 0.5
    assert results["protocol"] == "lm-eval"


def test_ifeval(verifiers, tmp_path, command):
    row = {"key": 5, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_rows(tmp_path / "data" / "ifeval" / "prompts.jsonl", [row, row | {"key": 6}])
    out = command([{"id": 5, "response": "fine"}, {"id": 6, "response": "a, b"}], task="ifeval")
    task = json.loads((out / "results.json").read_text())["tasks"]["ifeval"]
    names = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
    assert {name: metric["value"] for name, metric in task["metrics"].items()} == {
        f"{name}{ending}": 0.5 for name in names for ending in ("", "_fixed")
    }


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"id": 9, "response": "x"}], [], "has ids that are not in"),
        ([ROWS[0], ROWS[0]], [], "responses.jsonl:2: id 2 has a response at"),
        ([{"response": "x"}], [], "responses.jsonl:1: no field 'id'; the row has ['response'], and a row"),
        ([{"id": 1}], [], "responses.jsonl:1: no field 'response'"),
        ([{"id": 1, "response": None}], [], "response=None is a NoneType, expected str"),
        ([{"id": 1.5, "response": "x"}], [], "id=1.5 is a float, expected int or str"),
        ([{"id": 1, "response": "x", "finish_reason": "eos"}], [], "finish_reason='eos'; it is one of stop, length"),
        ([{"id": 1, "response": "x", "thinking": 3}], [], "thinking=3 is an int, expected str or NoneType"),
        ([{"id": 1, "response": "x", "repeat": "a"}], [], "repeat='a' is a str, expected int"),
        ([], [], "holds no rows"),
        (ROWS, ["--protocol", "mine"], "mine"),
        (ROWS, ["--responses", "absent.jsonl"], "error: cannot read absent.jsonl: No such file or directory.\n"),
    ],
)
def test_wrong_responses_end_in_one_line(command, tmp_path, capsys, rows, flags, message):
    with pytest.raises(SystemExit) as stop:
        command(rows, *flags)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_directory_of_other_responses_is_left_alone(command, capsys):
    out = command(ROWS)
    before = (out / "results.json").read_text()
    with pytest.raises(SystemExit):
        command(ROWS[:1])
    assert "was made with other settings" in capsys.readouterr().err
    assert (out / "results.json").read_text() == before
