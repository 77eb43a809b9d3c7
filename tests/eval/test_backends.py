"""The harness with a real model: a random tiny checkpoint, loaded from its folder, evaluated by command."""

import json

import pytest

from eval.run import main
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.presets import PRESETS
from tests.conftest import REPO
from tests.eval.conftest import write_rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tiny_tokenizer(["user assistant\n1 + 2 = 3"] * 4, folder / "tokenizer", vocab_size=300)
    return create_checkpoint(PRESETS["tiny"], folder / "checkpoint", tokenizer_from=tokenizer)


@pytest.mark.parametrize("mode", ["thinking", "non_thinking"])
def test_a_checkpoint_is_evaluated_by_command(checkpoint, tmp_path, capsys, mode):
    write_rows(tmp_path / "qa" / "test.jsonl", [{"question": f"{n}+1?", "answer": f"{n + 1}"} for n in range(3)])
    command = [str(REPO / "configs" / "tiny_eval.py"), "--model.path", str(checkpoint), "--data-dir", str(tmp_path)]
    command += ["--mode", mode, "--max-new-tokens", "4", "--max-batch", "4", "--out", str(tmp_path / "out")]
    main(command)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["mode"] == mode
    assert results["tasks"]["qa"]["n"] == 3
    assert sum(results["tasks"]["qa"]["outcomes"].values()) == 3
    lines = (tmp_path / "out" / "samples" / "qa.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["id"] for row in rows} == {0, 1, 2}
    assert all((row["thinking"] is None) == (mode == "non_thinking") for row in rows if not row["response"])

    main(command)
    assert (tmp_path / "out" / "samples" / "qa.jsonl").read_text().splitlines() == lines
    assert "accuracy" in capsys.readouterr().out
