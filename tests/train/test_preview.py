"""What a run would train on is shown before it begins."""

import json
import subprocess
import sys

import pytest

from qwen35_jax.command import config_from_command_line
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.source import load_tokenizer
from tests.train.launching import REPO, environment
from train.config import TrainConfig
from train.data.measure import measure
from train.data.pipeline import make_batches
from train.inputs import Inputs, settle_steps
from train.preview import preview, render_marked
from train.settle import settle


def parsed(arguments):
    return config_from_command_line(arguments, TrainConfig, program="python -m train.preview")


@pytest.fixture
def arguments(inputs, tmp_path):
    rows = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()]
    rows.insert(1, {"messages": [7]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ("--model.path", str(inputs / "base"), "--data.path", str(tmp_path / "data.jsonl"))
    return [
        "configs/tiny_sft.py",
        *model,
        "--data.sequence-length",
        "64",
        "--data.bad-rows",
        "drop",
        "--steps",
        "None",
        "--optim.warmup-steps",
        "0",
    ]


def test_the_preview_shows_examples_lengths_losses_and_the_steps_of_the_epochs(arguments):
    command = [sys.executable, "-m", "train.preview", *arguments, "--data.epochs", "2"]
    done = subprocess.run(command, cwd=REPO, env=environment(devices=1), capture_output=True, text=True, check=True)
    shown = done.stdout
    assert shown.count("\u27e6") == shown.count("\n== ") - 2 == 3
    assert "== lengths" in shown and "####" in shown
    assert "wrong_type 1" in shown and "line 2: message 1 is the number 7, not an object" in shown
    recipe = parsed([*arguments, "--data.epochs", "2"]).recipe
    batches = list(make_batches(recipe.data, load_tokenizer(recipe.model)))
    assert f"2 epochs fill {len(batches)} steps" in shown


def test_too_many_lost_rows_are_announced(arguments):
    lines = list(preview(parsed([*arguments, "--data.epochs", "1", "--data.max-lost", "0"])))
    [line] = [line for line in lines if line.startswith("  more than data.max_lost=0: the run would not start")]
    option = line[line.index("--data.max-lost") :].split()
    assert not any("would not start" in line for line in preview(parsed([*arguments, "--data.epochs", "1", *option])))


def test_what_would_stop_a_run_is_shown_with_all_the_rest(arguments):
    lines = list(preview(parsed([*arguments, "--data.epochs", "1", "--data.bad-rows", "error"])))
    wanted = "  the run would stop at the first wrong_type; mend these rows, or give --data.bad-rows drop"
    assert wanted in lines and lines[-1].startswith("1 epochs fill ")


def test_what_is_trained_stands_between_the_marks(arguments):
    recipe = parsed([*arguments, "--data.epochs", "2"]).recipe
    tokenizer = load_tokenizer(recipe.model)
    [[example]] = make_batches(recipe.data, tokenizer).corpus.load([5])
    text = render_marked(example, tokenizer, ("[[", "]]"))
    assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>]]\n")
    assert "</think>\n\n[[? It is" in text
    assert text.replace("[[", "").replace("]]", "") == tokenizer.decode(
        example.input_ids.tolist(), skip_special_tokens=False
    )


def test_a_run_needs_steps_or_epochs(arguments):
    with pytest.raises(ValueError, match=r"neither steps nor data\.epochs is given"):
        parsed(arguments)


@pytest.mark.parametrize(("steps", "share"), [(None, 1.0), (1000, 1.0), (2, None)])
def test_epochs_decide_the_steps_unless_fewer_are_given(arguments, inputs, steps, share):
    config = parsed([*arguments, "--data.epochs", "3"])
    config = config.replace(steps=steps)
    tokenizer = load_tokenizer(config.recipe.model)
    batches = make_batches(config.recipe.data, tokenizer)
    model_config = ModelConfig.from_hf(inputs / "base")
    settled = settle(config, model_config)
    found = Inputs(
        settled, inputs / "base", model_config, tokenizer, batches, measure(batches.corpus, whole=False), range(8), None
    )
    settled = settle_steps(config, found).recipe.num_steps
    assert settled == (2 if share is None else len(list(make_batches(config.recipe.data, tokenizer))))
