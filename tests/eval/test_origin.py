"""What results say of the run that wrote the samples, and of the code."""

import shutil
import subprocess

import pytest

from eval.config import EvalConfig
from eval.run import run
from eval.score import ScoreConfig, score
from eval.summary import table
from eval.version import code, commit_of
from tests.eval.conftest import FakeEngine, write_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {"1+1?": "hm\n</think>\n\n2", "2+2??": "hm 5"}


@pytest.fixture
def finished(tmp_path):
    """A finished run in thinking mode whose second response never closes its thought."""
    rows = [{"question": question, "answer": str(2 * int(question[0]))} for question in ANSWERS]
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", rows)
    out = tmp_path / "out"
    config = EvalConfig(
        tasks=("qa",), data_dir=str(tmp_path / "data"), out=str(out), mode="thinking", protocol="card",
        max_new_tokens=50,
    )  # fmt: skip
    return out, run(config, FakeEngine(ANSWERS))


def score_again(finished, samples):
    return score(ScoreConfig("qa", str(samples), protocol="card", data_dir=str(finished.parent / "data")))


def test_samples_that_are_scored_again_keep_what_their_run_recorded(finished):
    out, results = finished
    again = score_again(out, out / "samples" / "qa.jsonl")
    for name in ("model", "mode", "style", "limit", "repeats", "seed", "engines", "code"):
        assert again[name] == results[name], name
    same = ("metrics", "sampling", "max_new_tokens", "curve", "thinking_curve", "outcomes")
    assert {name: again["tasks"]["qa"][name] for name in same} == {name: results["tasks"]["qa"][name] for name in same}
    assert table(again) == table(results)


def test_samples_of_a_run_with_a_limit_are_scored_against_the_same_documents(tmp_path, caplog):
    rows = [{"question": question, "answer": "2"} for question in (*ANSWERS, "never asked")]
    write_rows(tmp_path / "data" / "qa" / "dev.jsonl", rows)
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", rows[::-1])
    out = tmp_path / "out"
    config = EvalConfig(tasks=("qa",), data_dir=str(tmp_path / "data"), out=str(out), limit=2, split="dev")
    results = run(config, FakeEngine(ANSWERS))
    again = score_again(out, out / "samples" / "qa.jsonl")
    digests = [each["tasks"]["qa"]["data_sha256"] for each in (results, again)]
    assert digests[0] == digests[1] and again["tasks"]["qa"]["missing"] == 0 and not caplog.text


def test_damaged_results_beside_the_samples_are_named(finished):
    out, _ = finished
    (out / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not valid JSON .*; remove it"):
        score_again(out, out / "samples" / "qa.jsonl")
    (out / "results.json").unlink()
    assert score_again(out, out / "samples" / "qa.jsonl")["mode"] == "thinking"


def test_foreign_text_that_was_scored_has_no_mode_either(finished):
    out, _ = finished
    foreign = write_rows(out.parent / "foreign.jsonl", [{"id": 0, "response": "2"}, {"id": 1, "response": "4"}])
    score(ScoreConfig("qa", str(foreign), data_dir=str(out.parent / "data"), out=str(out.parent / "scored")))
    samples = out.parent / "scored" / "samples" / "qa.jsonl"
    moved = shutil.copy(samples, out.parent / "moved.jsonl")
    assert score_again(out, samples)["mode"] is None and score_again(out, moved)["mode"] is None


def test_samples_elsewhere_show_their_mode_alone(finished):
    out, _ = finished
    moved = shutil.copy(out / "samples" / "qa.jsonl", out.parent / "moved.jsonl")
    again = score_again(out, moved)
    assert again["mode"] == "thinking" and "model" not in again and "sampling" not in again["tasks"]["qa"]
    rows = [{"id": 0, "response": "2", "thinking": None}, {"id": 1, "response": "4", "thinking": None}]
    assert score_again(out, write_rows(out.parent / "own.jsonl", rows))["mode"] == "non_thinking"
    foreign = [{"id": 0, "response": "2"}, {"id": 1, "response": "4"}]
    assert score_again(out, write_rows(out.parent / "foreign.jsonl", foreign))["mode"] is None


def test_the_commit_is_that_of_git():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("this is no checkout of Git")
    assert code()["commit"] == head.stdout.strip()


def test_a_commit_is_read_from_branches_packed_ones_and_further_work_trees(tmp_path):
    git = tmp_path / "main" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/a/b\n")
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{COMMIT} refs/heads/a/b\n")
    assert commit_of(tmp_path / "main") == COMMIT
    own = git / "worktrees" / "more"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/more\n")
    (own / "commondir").write_text("../..\n")
    (git / "refs" / "heads" / "more").write_text(COMMIT[::-1] + "\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ".git").write_text(f"gitdir: {own}\n")
    assert commit_of(tmp_path / "tree") == COMMIT[::-1]
    (git / "HEAD").write_text(COMMIT)
    assert commit_of(tmp_path / "main") == COMMIT


@pytest.mark.parametrize("head", [None, "ref: refs/heads/new\n", "ref: ../../secret\n", "", "\udcff"])
def test_no_commit_where_git_does_not_tell_one(tmp_path, head):
    (tmp_path / "secret").write_text("not a commit")
    if head is not None:
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "HEAD").write_bytes(head.encode("utf-8", "surrogateescape"))
    assert commit_of(tmp_path) is None
