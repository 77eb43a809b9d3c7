"""A benchmark of the user's own: the page's example, and files that are not one."""

import json

import pytest

from eval.config import EvalConfig
from eval.run import run
from eval.score import main as score
from eval.tasks import get_task
from tests.conftest import REPO
from tests.eval.conftest import FakeEngine, write_rows

FILE = REPO / "examples" / "estimates.py"
EXAMPLE = str(FILE)
ROWS = [
    {"question": "How many bones?", "value": 206, "topic": "body"},
    {"question": "How many keys on a piano?", "value": 88, "topic": "music"},
    {"question": "How heavy is a litre of water, in kg?", "value": 1.0, "topic": "physics"},
]
ANSWERS = ["About 200.\nAnswer: 200", "Answer: 1,000", "no idea"]


@pytest.fixture
def data(tmp_path):
    write_rows(tmp_path / "data" / "estimates" / "test.jsonl", ROWS)
    return str(tmp_path / "data")


def check(results):
    assert (results["metrics"]["accuracy"]["value"], results["n"]) == (pytest.approx(1 / 3), 3)
    assert (results["outcomes"]["ok"], results["outcomes"]["unparsed"]) == (2, 1)
    assert set(results["groups"]) == {"body", "music", "physics"}


def test_the_example_is_short():
    assert len(FILE.read_text().splitlines()) <= 40


def test_the_example_scores_stored_responses(tmp_path, data):
    stored = write_rows(tmp_path / "r.jsonl", [{"id": place, "response": text} for place, text in enumerate(ANSWERS)])
    out = tmp_path / "out"
    score(["--task", EXAMPLE, "--responses", str(stored), "--data-dir", data, "--out", str(out)])
    check(json.loads((out / "results.json").read_text())["tasks"]["estimates"])
    assert len((out / "samples" / "estimates.jsonl").read_text().splitlines()) == 3


def test_the_example_asks_a_model(tmp_path, data):
    prompts = [document.messages[0]["content"] for document in get_task(EXAMPLE).load("official", data).documents]
    engine = FakeEngine(dict(zip(prompts, ANSWERS, strict=True)))
    config = EvalConfig(tasks=(EXAMPLE,), data_dir=data, out=str(tmp_path / "out"))
    check(run(config, engine)["tasks"]["estimates"])


def test_a_changed_file_needs_another_directory(tmp_path, data):
    path = tmp_path / "mine.py"
    path.write_text(FILE.read_text())
    prompts = [document.messages[0]["content"] for document in get_task(str(path)).load("official", data).documents]
    config = EvalConfig(tasks=(str(path),), data_dir=data, out=str(tmp_path / "out"))
    run(config, FakeEngine(dict(zip(prompts, ANSWERS, strict=True))))
    run(config, FakeEngine({}))
    path.write_text(FILE.read_text() + "# changed\n")
    with pytest.raises(ValueError, match=r"was made with other settings \(task_sha256"):
        run(config, FakeEngine({}))


@pytest.mark.parametrize(("returned", "kind"), [("found == value", "a bool"), ("1", "an int"), ("None", "a NoneType")])
def test_a_score_that_is_no_verdict_ends_in_one_clear_line(tmp_path, data, capsys, returned, kind):
    own = tmp_path / "own.py"
    own.write_text(FILE.read_text().replace("found = final_number(response)", "found = 1\n        return " + returned))
    stored = write_rows(tmp_path / "r.jsonl", [{"id": 1, "response": "88"}])
    with pytest.raises(SystemExit):
        score(["--task", str(own), "--responses", str(stored), "--data-dir", data])
    [line] = capsys.readouterr().err.splitlines()
    assert f"the score of document 1 returned {kind}; return a Verdict of eval.tasks.base" in line


def test_two_files_of_one_name_are_refused(tmp_path, data):
    copy = tmp_path / "copy.py"
    copy.write_text(FILE.read_text())
    with pytest.raises(ValueError, match="give each file's TASK a name of its own"):
        run(EvalConfig(tasks=(EXAMPLE, str(copy)), data_dir=data, out=str(tmp_path / "out")), FakeEngine({}))


IMPORTS = "from eval.tasks.base import Task\nfrom eval.tasks.data import Data\n"
TASK = IMPORTS + "TASK = Task({}, Data(('test',)), {{}}, print)\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "mine.py' is no file; give the path of a Python file that defines TASK"),
        ("x = 1", "mine.py: TASK is NoneType; define TASK = Task"),
        ("TASK = 3", "mine.py: TASK is int; define TASK"),
        ("def", "cannot read the task .*mine.py: SyntaxError"),
        ("import no_such_module", "cannot read the task .*ModuleNotFoundError: No module named 'no_such_module'"),
        ("from eval.tasks.base import Task\nTASK = Task(title='x')", "cannot read the task .*TypeError"),
        (TASK.format("'gsm8k'"), "TASK has the name 'gsm8k'; take letters"),
        (TASK.format("'../x'"), "TASK has the name '../x'; take letters"),
    ],
)
def test_other_files_end_in_one_clear_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        get_task(str(path))
    assert "\n" not in str(error.value)
