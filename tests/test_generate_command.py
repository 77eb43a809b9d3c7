"""``qwen35 generate``: every setting by option, several samples, and a killed command that ends in the same file."""

import json
import signal
import subprocess
import sys
import time

import pytest

from qwen35_jax.cli import main, make_parser
from qwen35_jax.commands.options import sampling_of
from qwen35_jax.inference.row_file import RowFile
from qwen35_jax.inference.sampling import SamplingParams
from tests.conftest import REPO

ENGINE = ["--dtype", "float32", "--slots", "4", "--cache-tokens", "2048"]
SAMPLED = ["--temperature", "1.0", "--top-k", "20", "--seed", "3"]


@pytest.fixture
def generate(tiny_checkpoint, tmp_path):
    """Runs the command over a file of so many questions; returns the path of its output."""

    def run(name: str, count: int, *options: str):
        return main(command_line(tiny_checkpoint, tmp_path, name, count, *options)) or tmp_path / name

    return run


def command_line(checkpoint, folder, name, count, *options) -> list[str]:
    rows = [
        {"id": f"q{i}", "messages": [{"role": "user", "content": "word " * (i % 7) + str(i)}]} for i in range(count)
    ]
    source = folder / f"{count}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--input", str(source), "--output", str(folder / name)]
    return ["generate", "--model", str(checkpoint), *files, *ENGINE, *SAMPLED, "--max-new-tokens", "8", *options]


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_setting_of_sampling_has_an_option():
    options = (
        "--temperature 0.7 --top-k 5 --top-p 0.9 --min-p 0.1 --presence-penalty 1 --frequency-penalty 0.5 "
        "--repetition-penalty 1.1 --logit-bias 5=-2 --logit-bias 7=1.5 --stop END --stop ### --stop-token-id 9 "
        "--ignore-end --thinking-budget 64 --budget-close sentence --detect-loops --logprobs 3"
    )
    want = SamplingParams(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, presence_penalty=1.0, frequency_penalty=0.5,
        repetition_penalty=1.1, logit_bias={5: -2.0, 7: 1.5}, stop=("END", "###"), stop_token_ids=(9,),
        ignore_end=True, thinking_budget=64, budget_close="sentence", detect_loops=True, logprobs=3,
    )  # fmt: skip
    parser = make_parser("generate")
    assert sampling_of(parser.parse_args(["generate", "--model", "m", "x", *options.split()])) == want
    assert sampling_of(parser.parse_args(["generate", "--model", "m", "x"])) == SamplingParams()


def test_samples_of_a_prompt_follow_each_other_and_differ(generate):
    rows = rows_of(generate("out.jsonl", 3, "--samples", "2", "--logprobs", "1"))
    assert [(row["id"], row["repeat"]) for row in rows] == [(f"q{i}", j) for i in range(3) for j in (0, 1)]
    assert all(first["response"] != second["response"] for first, second in zip(rows[::2], rows[1::2], strict=True))
    likely = rows[0]["logprobs"]
    assert len(likely) == rows[0]["num_tokens"] and all(each["model"] <= each["top"][0][1] <= 0 for each in likely)


class Killed(BaseException):
    """What no handler of errors catches, as a kill."""


def test_a_command_killed_at_any_row_ends_in_the_same_file(generate, monkeypatch, tmp_path):
    whole = generate("whole.jsonl", 13).read_bytes()
    add = RowFile.add
    for kill_at in (1, 4, 9):

        def add_until(self, place, row, kill_at=kill_at):
            add(self, place, row)
            if len(self) == kill_at:
                raise Killed

        monkeypatch.setattr(RowFile, "add", add_until)
        with pytest.raises(Killed):
            generate("out.jsonl", 13)
        partial = tmp_path / "out.jsonl.partial"
        partial.write_bytes(partial.read_bytes()[: -3 if kill_at == 4 else None])
    monkeypatch.undo()
    assert generate("out.jsonl", 13).read_bytes() == whole
    assert not list(tmp_path.glob("out.jsonl.*"))


@pytest.mark.soak
def test_a_command_killed_by_a_signal_ends_in_the_same_file(tiny_checkpoint, tmp_path):
    """Kills it three times, each time after some of its 300 rows."""
    program = [sys.executable, "-m", "qwen35_jax.cli"]
    whole = program + command_line(tiny_checkpoint, tmp_path, "whole.jsonl", 300, "--speculative-tokens", "1")
    command = [word.replace("whole.jsonl", "out.jsonl") for word in whole]
    subprocess.run(whole, cwd=REPO, check=True)
    partial, counts = tmp_path / "out.jsonl.partial", [0]
    for _ in range(3):
        with subprocess.Popen(command, cwd=REPO) as process:
            while num_lines(partial) < counts[-1] + 40:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        counts.append(num_lines(partial))
    assert counts[-1] < 300
    subprocess.run(command, cwd=REPO, check=True)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def num_lines(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "4"], "was begun with --seed 3 and not 4; give the settings that it was begun with"),
        (["--top-p", "0.9"], "--top-p 1.0 and not 0.9"),
        (["--slots", "3"], "--slots 4 and not 3"),
        (["--samples", "2"], "--samples 1 and not 2"),
    ],
)
def test_an_unfinished_file_of_other_settings_is_refused(generate, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(RowFile, "add", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        generate("out.jsonl", 2)
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stop:
        generate("out.jsonl", 2, *options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error, error
