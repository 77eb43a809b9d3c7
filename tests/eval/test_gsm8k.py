"""GSM8K rows into conversations and questions."""

import json

import pytest

from eval.tasks.gsm8k import main, split_answer, to_conversation, to_question
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.processing import Tokenizer
from tests.conftest import shared_dir
from train.data.forms import read_as
from train.data.rows import check_row, control_tokens

ROW = {
    "question": "How many clips in April and May? ",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 1,072",
}
SOLUTION = "Natalia sold 48/2 = 24 clips in May.\nIn all 48+24 = 72 clips."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_pretrained(build_tiny_tokenizer([SOLUTION], tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows (or lines as they are) to a JSONL file and returns its path."""

    def write(rows):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / "data.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / "data.jsonl")

    return write


def test_conversation_and_question():
    user, assistant = to_conversation(ROW)["messages"]
    assert user == {"role": "user", "content": "How many clips in April and May?"}
    assert assistant == {"role": "assistant", "reasoning_content": SOLUTION, "content": "1072"}
    assert to_question(ROW) == {"question": user["content"], "answer": "1072"}


@pytest.mark.parametrize("answer", ["no mark", "a\n#### ", "a\n#### x", "#### 1\nmore"])
def test_other_answers_are_refused(answer):
    with pytest.raises(ValueError, match="not with a line '#### <number>'"):
        split_answer(answer)


@pytest.mark.parametrize(("to", "keys"), [("conversations", {"messages"}), ("questions", {"question", "answer"})])
def test_command(tmp_path, write_rows, capsys, to, keys):
    target = tmp_path / "out.jsonl"
    main([write_rows([ROW, "", {**ROW, "question": "Why\u2028?"}]), str(target), "--to", to])
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]
    assert [row.keys() for row in rows] == [keys, keys]
    assert capsys.readouterr().out == f"2 rows written to {target}\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[", "data.jsonl line 2: Expecting"),
        ({"question": "a"}, "data.jsonl line 2: not an object with question and answer ('answer')"),
        ([1], "data.jsonl line 2: not an object"),
        ({"question": "a", "answer": "b"}, "data.jsonl line 2: the answer ends with 'b'"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, write_rows, capsys, line, words):
    target = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as caught:
        main([write_rows([ROW, line]), str(target)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not target.exists()


def test_an_existing_file_is_kept(tmp_path, write_rows, capsys):
    target = tmp_path / "out.jsonl"
    target.write_text("mine")
    with pytest.raises(SystemExit):
        main([write_rows([ROW]), str(target)])
    assert "exists" in capsys.readouterr().err
    assert target.read_text() == "mine"


@pytest.mark.skipif(shared_dir() is None, reason="GSM8K is not beside the checkout")
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_all_of_gsm8k(split, count, tokenizer):
    lines = (shared_dir() / "data" / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert len(rows) == count
    control = control_tokens(tokenizer)
    for row in rows:
        conversation = to_conversation(row)
        check_row(read_as("messages", conversation), control)
        assistant = conversation["messages"][1]
        assert float(assistant["content"]) == float(row["answer"].split("#### ")[1].replace(",", ""))
        assert "<<" not in assistant["reasoning_content"]
        assert "####" not in assistant["reasoning_content"]
