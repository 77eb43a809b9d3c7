"""The harness with a real model: a random tiny checkpoint, loaded from its folder, evaluated by command."""

import dataclasses
import json
import shutil

import jax
import pytest
from safetensors.numpy import load_file, save_file

from eval.run import main
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.inference.speculative import acceptance_by_completion
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from tests.conftest import REPO
from tests.eval.conftest import write_rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tiny_tokenizer(["user assistant\n1 + 2 = 3"] * 4, folder / "tokenizer", vocab_size=300)
    # A short period halves the time to compile.
    text = dataclasses.replace(PRESETS["tiny"].text, num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2)
    config = dataclasses.replace(PRESETS["tiny"], text=text)
    return create_checkpoint(config, folder / "checkpoint", tokenizer_from=tokenizer)


@pytest.mark.parametrize("mode", ["thinking", "non_thinking"])
def test_a_checkpoint_is_evaluated_by_command(checkpoint, tmp_path, capsys, mode):
    write_rows(tmp_path / "qa" / "test.jsonl", [{"question": f"{n}+1?", "answer": f"{n + 1}"} for n in range(3)])
    command = [str(REPO / "configs" / "tiny_eval.py"), "--model.path", str(checkpoint), "--data-dir", str(tmp_path)]
    command += ["--mode", mode, "--max-new-tokens", "4", "--slots", "4", "--out", str(tmp_path / "out")]
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


def evaluate(checkpoint, tmp_path, name, *flags):
    """Runs the command over ten short questions; returns the task's results and the samples by id."""
    write_rows(tmp_path / "qa" / "test.jsonl", [{"question": f"{n}+1?" + "x" * n, "answer": "1"} for n in range(10)])
    out = tmp_path / name
    command = [str(REPO / "configs" / "tiny_eval.py"), "--model.path", str(checkpoint), "--data-dir", str(tmp_path)]
    main([*command, "--max-new-tokens", "8", "--slots", "4", "--out", str(out), *flags])
    samples = [json.loads(line) for line in (out / "samples" / "qa.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())
    return results["tasks"]["qa"], {sample["id"]: sample for sample in samples}


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.slow
def test_a_mesh_of_eight_devices_changes_no_sample(checkpoint, tmp_path):
    alone, samples = evaluate(checkpoint, tmp_path, "alone", "--mtp-acceptance")
    mesh = ["--mesh.fsdp", "4", "--mesh.tensor", "2"]
    split, split_samples = evaluate(checkpoint, tmp_path, "split", "--mtp-acceptance", *mesh)
    for sample in (*samples.values(), *split_samples.values()):
        del sample["engine"]  # it tells the mesh
    assert split_samples == samples
    assert split["metrics"] == alone["metrics"]


def test_mtp_acceptance_is_counted_on_the_stored_samples(checkpoint, tmp_path):
    plain, samples = evaluate(checkpoint, tmp_path, "out")
    assert "mtp_acceptance" not in plain["metrics"]
    # The samples do not depend on the count, so that it can be asked for later.
    task, again = evaluate(checkpoint, tmp_path, "out", "--mtp-acceptance")
    assert again == samples
    metric = task["metrics"]["mtp_acceptance"]
    tokenizer, model = Tokenizer.from_pretrained(checkpoint), load(checkpoint, "float32")
    chats = [[{"role": "user", "content": f"{n}+1?" + "x" * n}] for n in range(10)]
    prompts = [tokenizer.encode_chat(chat, enable_thinking=False) for chat in chats]
    counts = acceptance_by_completion(model, prompts, [samples[n]["token_ids"] for n in range(10)])
    assert [metric["accepted"], metric["proposed"]] == [sum(each) for each in zip(*counts, strict=True)]
    assert metric["proposed"] == sum(len(sample["token_ids"]) - 1 for sample in samples.values()) > 0
    assert metric["value"] == pytest.approx(metric["accepted"] / metric["proposed"])
    assert metric["low"] <= metric["value"] <= metric["high"]


def test_mtp_acceptance_of_style_text_counts_after_the_prompts_that_were_asked(checkpoint, tmp_path):
    task, samples = evaluate(checkpoint, tmp_path, "out", "--mtp-acceptance", "--style", "text")
    tokenizer, model = Tokenizer.from_pretrained(checkpoint), load(checkpoint, "float32")
    prompts = [tokenizer.encode(f"{n}+1?" + "x" * n) for n in range(10)]
    counts = acceptance_by_completion(model, prompts, [samples[n]["token_ids"] for n in range(10)])
    metric = task["metrics"]["mtp_acceptance"]
    assert [metric["accepted"], metric["proposed"]] == [sum(each) for each in zip(*counts, strict=True)]


def test_a_checkpoint_without_an_mtp_head_is_refused_before_anything_is_generated(checkpoint, tmp_path, capsys):
    headless = tmp_path / "headless"
    shutil.copytree(checkpoint, headless)
    for file in headless.glob("*.safetensors"):
        tensors = {name: value for name, value in load_file(file).items() if not name.startswith("mtp.")}
        save_file(tensors, file)
    (headless / "model.safetensors.index.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit):
        evaluate(headless, tmp_path, "out", "--mtp-acceptance")
    assert "needs a model with an MTP head" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
