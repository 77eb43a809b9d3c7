"""Where rows come from, what is wrong with wrong ones, and the two exact-match tasks."""

import json

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from eval.tasks import TASKS, get_task
from eval.tasks.base import Verdict
from eval.tasks.data import Data, digest_of, read_rows, read_split
from eval.tasks.gsm8k import CARD_REQUEST
from tests.eval.conftest import write_rows

QA_ROWS = [{"question": "2+2?", "answer": "4"}, {"question": "Sky?", "answer": "Blue", "id": "sky"}]
SOLUTION = "She has 1,000 + 200 = <<1000+200=1200>>1,200.\n#### 1,200"


def load(tmp_path, rows, task="qa", protocol="official", name="test.jsonl", limit=None):
    write_rows(tmp_path / task / name, rows)
    return get_task(task).load(protocol, str(tmp_path), limit, asked=False).documents


def test_unknown_task():
    with pytest.raises(ValueError, match=r"'gms8k' does not exist; choose from .*gsm8k, .*Did you mean gsm8k\?"):
        get_task("gms8k")


def test_ids_are_given_or_row_numbers_from_zero(tmp_path):
    assert [document.id for document in load(tmp_path, [*QA_ROWS, QA_ROWS[0]])] == [0, "sky", 2]
    assert [document.id for document in load(tmp_path, QA_ROWS, limit=1)] == [0]


def test_data_may_lie_in_one_folder_a_subject_or_in_shards(tmp_path):
    data = Data(splits=("val",))
    write_rows(tmp_path / "t" / "law" / "val.jsonl", [{"x": 2}])
    write_rows(tmp_path / "t" / "art" / "val.jsonl", [{"x": 0}, {"x": 1, "subject": "own"}])
    _, rows = read_split("t", data, str(tmp_path), "val")
    assert [row.fields for row in rows] == [
        {"subject": "art", "x": 0}, {"subject": "own", "x": 1}, {"subject": "law", "x": 2},
    ]  # fmt: skip
    assert [row.number for row in rows] == [0, 1, 2]
    for shard in (1, 0):
        path = tmp_path / "s" / "data" / f"val-0000{shard}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"x": shard}]), path)
    _, rows = read_split("s", data, str(tmp_path), "val")
    assert [row.fields["x"] for row in rows] == [0, 1]
    with pytest.raises(ValueError, match=r"s holds \['data'\]; put the data of s at .*s/test.jsonl"):
        read_split("s", data, str(tmp_path), "test")


def test_equal_rows_have_equal_digests_however_they_are_stored(tmp_path):
    rows = [{"question": "é?", "answer": "4", "n": 1}]
    write_rows(tmp_path / "a.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    one, other = (digest_of(read_rows(tmp_path / name)) for name in ("a.jsonl", "a.parquet"))
    assert one == other != digest_of([])


@pytest.mark.parametrize("names", [["test.jsonl", "train.jsonl"], ["questions.jsonl"], ["test.parquet"]])
def test_the_data_file_is_found(tmp_path, names):
    for name in names:
        path = write_rows(tmp_path / "qa" / name, QA_ROWS if name != "train.jsonl" else [])
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QA_ROWS[0]]), path)
    documents = get_task("qa").load("official", str(tmp_path)).documents
    assert len(documents) == (1 if path.suffix == ".parquet" else 2)
    assert documents[0].messages == [{"role": "user", "content": "2+2?"}]


@pytest.mark.parametrize(
    ("task", "own", "others"),
    [
        ("supergpqa", "SuperGPQA-all.jsonl", ["extra.jsonl"]),
        ("gpqa_diamond", "gpqa_diamond.csv", ["gpqa_main.csv", "gpqa_extended.csv"]),
        ("ifeval", "ifeval_input_data.jsonl", ["more.jsonl"]),
        ("gsm8k", "main/test-00000-of-00001.parquet", ["socratic/test-00000-of-00001.parquet"]),
        ("mmlu", "all/test-00000-of-00001.parquet", ["anatomy/test-00000-of-00001.parquet"]),
    ],
)
def test_a_copy_of_the_hubs_repository_is_read_as_the_hub_is(tmp_path, task, own, others):
    (tmp_path / task).mkdir()
    (tmp_path / task / "README.md").write_text("# Data\n")
    for name in (own, *others):
        path = tmp_path / task / name
        path.parent.mkdir(exist_ok=True)
        row = {"text": name}
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        else:
            path.write_text(f"text\n{name}\n" if path.suffix == ".csv" else json.dumps(row) + "\n")
    data = get_task(task).data
    assert [row.fields for row in read_split(task, data, str(tmp_path), data.splits[0])[1]] == [{"text": own}]


def test_a_split_that_the_hub_lacks_is_not_another_one(tmp_path):
    with pytest.raises(ValueError, match="task supergpqa has no split 'test' on the hub; give --split train"):
        get_task("supergpqa").load("official", None, split="test")
    write_rows(tmp_path / "supergpqa" / "SuperGPQA-all.jsonl", [{}])
    with pytest.raises(ValueError, match=r"put the data of supergpqa at .*test\.jsonl"):
        get_task("supergpqa").load("official", str(tmp_path), split="test")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "qa is not a folder; put the data of qa at"),
        ([], "holds no data file; put the data of qa at"),
        (["a.jsonl", "b.jsonl"], r"holds \['a.jsonl', 'b.jsonl'\]; put the data"),
    ],
)
def test_no_data_file_can_be_chosen(tmp_path, files, message):
    if files is not None:
        (tmp_path / "qa").mkdir()
        for name in files:
            write_rows(tmp_path / "qa" / name, QA_ROWS)
    with pytest.raises(ValueError, match=message):
        get_task("qa").load("official", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ('{"question": "a", "answer": "b"}\n\n{"question": \n', r"test\.jsonl:3: not valid JSON"),
        ("[1]\n", r"test\.jsonl:1: a list, expected a JSON object"),
        ('{"question": "a"}\n', r"test\.jsonl:1: no field 'answer'; the row has \['question'\]"),
        ('{"question": "a", "answer": 4}\n', r"test\.jsonl:1: answer=4 is an int, expected str"),
        ('{"question": "a", "answer": " . "}\n', r"test\.jsonl:1: answer=' \. ' is empty"),
        ('{"question": "a", "answer": "b", "id": true}\n', r"test\.jsonl:1: id=True is a bool, expected int or str"),
        (
            '{"question": "a", "answer": "b", "id": 1}\n{"question": "c", "answer": "d"}\n',
            r"test\.jsonl:2: id 1 stands at .*test\.jsonl:1 already",
        ),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "test.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        get_task("qa").load("official", str(tmp_path))


@pytest.mark.parametrize("name", ["test.jsonl", "test.parquet"])
def test_unreadable_files(tmp_path, name):
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / name).write_bytes(b"\xff\xfe broken")
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        get_task("qa").load("official", str(tmp_path))


def test_without_a_data_directory_the_hub_file_is_fetched_at_its_revision(tmp_path, monkeypatch):
    asked = []

    def download(repo, filename, *, repo_type, revision):
        asked.append((repo, filename, repo_type, revision))
        return str(write_rows(tmp_path / "x.jsonl", [{"question": "q", "answer": SOLUTION}]))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    documents = get_task("gsm8k").load("official", None).documents
    assert len(documents) == 1
    ((repo, filename, repo_type, revision),) = asked
    assert (repo, filename, repo_type) == ("openai/gsm8k", "main/test-00000-of-00001.parquet", "dataset")
    assert len(revision) == 40


def test_an_unreachable_hub_is_a_clear_error(monkeypatch):
    def download(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=r"cannot fetch .* of openai/gsm8k@.*give --data-dir"):
        get_task("gsm8k").load("official", None)
    with pytest.raises(ValueError, match="task qa has no public data set"):
        get_task("qa").load("official", None)
    with pytest.raises(ValueError, match=r"realworldqa/test.jsonl \(or .parquet\) or RealWorldQA.tsv in it"):
        get_task("realworldqa").load("official", None)


@pytest.mark.parametrize(
    ("response", "prediction", "correct"),
    [("blue", "blue", True), ("I say: the answer is Blue.", "blue", True), ("red", "red", False), (" ", None, False)],
)
def test_qa_verdicts(tmp_path, response, prediction, correct):
    verdict = load(tmp_path, QA_ROWS)[1].score(response)
    assert (verdict.prediction, verdict.correct, verdict.parsed) == (prediction, correct, prediction is not None)
    assert verdict.metrics == {"accuracy": [correct]}


@pytest.mark.parametrize(
    ("answer", "response", "prediction", "correct"),
    [
        ("18", "18 apples", "18", True), ("18", "She has 18 apples, of 20.\nThe answer is 18 apples.", "18", True),
        ("18", "**18.0**", "18", True), ("1,200", "It costs $1200", "1200", True), ("18", "17 apples", "17", False),
        ("18", "no idea", None, False), ("1/2", "The answer is 0.5.", "0.5", True),
        ("18 apples", "18", "18", False), ("18 apples", "The answer is 18 apples.", "18 apples", True),
    ],
)  # fmt: skip
def test_qa_compares_numbers_where_the_answer_is_one(tmp_path, answer, response, prediction, correct):
    (document,) = load(tmp_path, [{"question": "q", "answer": answer}])
    verdict = document.score(response)
    assert (verdict.prediction, verdict.correct, verdict.parsed) == (prediction, correct, prediction is not None)


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_metric_is_one_finite_number_or_more(values):
    with pytest.raises(ValueError, match="metric 'length' has the values"):
        Verdict(True, {"length": values})


def test_a_metric_that_is_no_list_is_refused():
    with pytest.raises(ValueError, match=r"metric 'accuracy' is True; give a list of numbers, such as \[1\]"):
        Verdict(True, {"accuracy": True})


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_found_by_its_name(name):
    assert get_task(name).name == name


@pytest.mark.parametrize(
    ("protocol", "prompt"),
    [
        ("official", "How many?"),
        ("card", f"How many?\n\n{CARD_REQUEST}"),
        ("lm-eval", "Question: How many?\nAnswer:"),
    ],
)
def test_gsm8k_prompts(tmp_path, protocol, prompt):
    rows = [{"question": "How many?", "answer": SOLUTION}]
    (document,) = load(tmp_path, rows, task="gsm8k", protocol=protocol)
    assert document.messages == [{"role": "user", "content": prompt}]


def test_gsm8k_needs_the_solution_mark(tmp_path):
    with pytest.raises(ValueError, match=r"test\.jsonl:1: .* does not end in '#### NUMBER'"):
        load(tmp_path, [{"question": "q", "answer": "1200"}], task="gsm8k")
