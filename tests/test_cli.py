"""The ``qwen35`` command from end to end on a tiny random checkpoint, and its wrong inputs."""

import dataclasses
import io
import json
import subprocess
import sys
import types
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qwen35_jax import lora
from qwen35_jax.cli import COMMANDS, main
from qwen35_jax.hf.adapter import save_adapter
from qwen35_jax.hf.load import load
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import PRESETS, card_sampling
from tests.conftest import REPO
from train.checkpoint import Checkpoints
from train.observe.health import new_health
from train.state import TrainState, split_model

SHORT = ["--dtype", "float32", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint) -> str:
    return tiny_checkpoint


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory) -> str:
    """An adapter strong enough to change every answer."""
    model = load(checkpoint, "float32")
    lora.add(model, lora.LoraConfig(rank=4), seed=0)
    for _, layer in lora.adapted_layers(model):
        layer.lora_b[...] = layer.lora_b[...] + 0.3
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    save_adapter(model, folder, checkpoint)
    return str(folder)


@pytest.fixture
def conversations(tmp_path) -> str:
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"row {i}", "messages": [{"role": "user", "content": "x" * i}]} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_generate_writes_rows_in_order(checkpoint, conversations, tmp_path):
    out = tmp_path / "out.jsonl"
    main(["generate", "--model", checkpoint, "--input", conversations, "--output", str(out), *SHORT])
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["row 0", "row 1", "row 2"]
    assert rows[0].keys() == {"id", "response", "thinking", "finish_reason", "num_tokens"}
    assert all(row["thinking"] is None and row["num_tokens"] <= 6 for row in rows)


def test_generate_prints_answers_to_prompts(checkpoint, capsys):
    main(["generate", "--model", checkpoint, "hello", "you", "--mode", "thinking", "--system", "Short.", *SHORT])
    shown = capsys.readouterr().out
    assert shown.startswith("--- 0\n") and "\n--- 1\n" in shown


def test_chat_answers_piped_lines(checkpoint, adapter, capsys, monkeypatch):
    model = ["--model", checkpoint, "--adapter", adapter]
    main(["generate", *model, "hello", *SHORT])
    shown = capsys.readouterr()
    answer = shown.out.rstrip("\n")
    assert shown.err.endswith("tokens; raise --max-new-tokens.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\nhello\n"))
    main(["chat", *model, *SHORT, "--temperature", "0"])
    assert capsys.readouterr().out.count(f"{answer}\n\n(cut off; raise --max-new-tokens") == 2
    assert answer


def test_chat_samples_as_the_card_advises_where_options_do_not_say_otherwise(checkpoint, monkeypatch):
    taken = []
    monkeypatch.setattr("qwen35_jax.commands.chat.engine_of", lambda *_, **__: Mock())
    monkeypatch.setattr("qwen35_jax.commands.chat.chat", lambda *_, sampling, **__: taken.append(sampling))
    for options in ([], ["--mode", "thinking", "--top-p", "0.5"], ["--temperature", "0", "--min-p", "0.1"]):
        main(["chat", "--model", checkpoint, *options])
    assert taken == [
        SamplingParams(temperature=1.0, top_k=20, presence_penalty=2.0),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.5, presence_penalty=1.5),
        SamplingParams(min_p=0.1),
    ]


@pytest.mark.parametrize(("preset", "want"), [("0.8b", 1.0), ("2b", 1.0), ("4b", 0.7), ("35b-a3b", 0.7), ("27b", 0.7)])
def test_cards_of_larger_models_advise_less_chance_without_thinking(preset, want):
    assert card_sampling(PRESETS[preset], "non_thinking").temperature == want
    assert card_sampling(PRESETS[preset], "thinking").temperature == 1.0


def test_merged_checkpoint_answers_as_with_the_adapter(checkpoint, adapter, conversations, tmp_path):
    merged = tmp_path / "merged"
    main(["merge", "--model", checkpoint, "--adapter", adapter, "--out", str(merged)])
    answers = []
    for name, model in (("base", [checkpoint]), ("adapter", [checkpoint, "--adapter", adapter]), ("merged", [merged])):
        out = tmp_path / f"{name}.jsonl"
        main(["generate", "--model", *map(str, model), "--input", conversations, "--output", str(out), *SHORT])
        answers.append(rows_of(out))
    assert answers[1] == answers[2] != answers[0]


@pytest.mark.parametrize("adapter_run", [True, False])
def test_export_writes_what_a_step_had_trained(checkpoint, tmp_path, adapter_run):
    model = load(checkpoint, "float32")
    config = lora.LoraConfig(rank=4)
    if adapter_run:
        lora.add(model, config, seed=0)
    for path, layer in lora.all_layers(model):
        if adapter_run and layer.lora_b is not None:
            layer.lora_b[...] = layer.lora_b[...] + 0.1
        elif not adapter_run and path[0] == "layers":
            layer.weight[...] = layer.weight[...] + 0.1
    _, params, _ = split_model(model, adapters=adapter_run, train_mtp=True)
    run_dir = tmp_path / "run"
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=2)
    for step, scale in ((3, 1.0), (5, 0.0)):
        scaled = jax.tree.map(lambda x, scale=scale: x * scale, params)
        checkpoints.save(TrainState(jnp.array(step), scaled, optax.adam(1e-3).init(scaled), new_health()), {})
    checkpoints.close()
    recipe = {"model": {"path": checkpoint, "dtype": "float32"}}
    recipe["lora"] = dataclasses.asdict(config) if adapter_run else None
    (run_dir / "config.json").write_text(json.dumps({"recipe": recipe}))

    ids = np.arange(12)[None]
    out = tmp_path / "out"
    main(["export", str(run_dir), "--out", str(out), "--step", "3"])
    exported = load(checkpoint, "float32", adapter=out) if adapter_run else load(out, "float32")
    np.testing.assert_array_equal(exported.logits(ids), model.logits(ids))
    if adapter_run:
        cut = run_dir / "checkpoints" / "7"
        cut.mkdir()
        (cut / "manifest.json").write_text('{"state/data": 12}')
        main(["export", str(run_dir), "--out", str(tmp_path / "newest"), "--merged"])
        # All factors of the newest whole step are 0.
        merged, base = load(tmp_path / "newest", "float32"), load(checkpoint, "float32")
        np.testing.assert_array_equal(merged.logits(ids), base.logits(ids))


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: qwen35" in capsys.readouterr().out


def test_help_names_every_command_without_importing_jax():
    code = "import sys, qwen35_jax.cli as c\ntry: c.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch, capsys):
    def run(args):
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn.config")

    module = types.SimpleNamespace(add_serve_options=lambda parser: None, run_serve=run)
    monkeypatch.setitem(sys.modules, "qwen35_jax.commands.serve", module)
    with pytest.raises(SystemExit) as stop:
        main(["serve"])
    assert stop.value.code == 2
    needed = (
        "error: qwen35 serve needs the package uvicorn; install the extra in the checkout: pip install -e '.[serve]'\n"
    )
    assert capsys.readouterr().err == needed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["generat", "--model", "MODEL"], "Did you mean generate?"),
        (["generate", "--model", "MODEL", "hi", "--temprature", "1"], "Did you mean --temperature?"),
        (["generate", "--model", "MODEL", "hi", "--dtype", "bf16"], "Did you mean bfloat16?"),
        (["generate", "hi"], "--model"),
        (["generate", "--model", "MODEL"], "one of the two"),
        (["generate", "--model", "MODEL", "hi", "--input", "x.jsonl"], "one of the two"),
        (["generate", "--model", "MODEL", "--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["generate", "--model", "MODEL", "--input", "x.jsonl", "--system", "y"], "--system"),
        (["generate", "--model", "MODEL", "hi", "--output", "MODEL/config.json"], "exists"),
        (["generate", "--model", "MODEL", "hi", "--output", "nowhere/out.jsonl"], "nowhere"),
        (["generate", "--model", "nowhere", "hi"], "nowhere"),
        (["generate", "--model", "MODEL", "hi", "--adapter", "nowhere"], "nowhere"),
        (["generate", "--model", "MODEL", "hi", "--mode", "hard"], "hard"),
        (["generate", "--model", "MODEL", "hi", "--top-p", "1.5"], "--top-p 1.5; give"),
        (["generate", "--model", "MODEL", "hi", "--top-k", "many"], "many"),
        (["generate", "--model", "MODEL", "hi", "--max-new-tokens", "0"], "--max-new-tokens 0; give"),
        (["generate", "--model", "MODEL", "hi", "--max-new-tokens", "4090"], "4096 positions"),
        (["generate", "--model", "MODEL", "hi", "--mesh.tensor", "99"], "99 devices"),
        (["generate", "--model", "MODEL", "hi", "--max-batch", "4"], "unknown options: --max-batch"),
        (["generate", "--model", "MODEL", "hi", "--slots", "0"], "--slots 0; give"),
        (["generate", "--model", "MODEL", "hi", "--samples", "0"], "--samples 0; give"),
        (["generate", "--model", "MODEL", "hi", "--speculative-tokens", "99"], "--speculative-tokens 99; give"),
        (["generate", "--model", "MODEL", "hi", "--cache-tokens", "64"], "or raise --cache-tokens"),
        (["generate", "--model", "MODEL", "hi", "--temperature", "-1"], "--temperature -1.0; give 0 (greedy)"),
        (["generate", "--model", "MODEL", "hi", "--min-p", "2"], "--min-p 2.0; give"),
        (["generate", "--model", "MODEL", "hi", "--frequency-penalty", "nan"], "--frequency-penalty nan; give"),
        (["generate", "--model", "MODEL", "hi", "--repetition-penalty", "0"], "--repetition-penalty 0.0; give"),
        (["generate", "--model", "MODEL", "hi", "--logit-bias", "5"], "'5' is not ID=VALUE"),
        (["generate", "--model", "MODEL", "hi", "--logit-bias", "5=1000"], "--logit-bias 5=1000.0; give"),
        (["generate", "--model", "MODEL", "hi", "--logit-bias", "99999=1"], "logit_bias names token 99999"),
        (["generate", "--model", "MODEL", "hi", "--stop", ""], "an empty text"),
        (["generate", "--model", "MODEL", "hi", "--stop-token-id", "99999"], "names token 99999"),
        (["generate", "--model", "MODEL", "hi", "--thinking-budget", "-1"], "--thinking-budget -1; give"),
        (["generate", "--model", "MODEL", "hi", "--budget-close", "soft"], "invalid choice: 'soft'"),
        (["generate", "--model", "MODEL", "hi", "--logprobs", "21"], "--logprobs 21; give"),
        (["generate", "--model", "MODEL", "hi", "--output", "gs://bucket/out.jsonl"], "gs://"),
        (["chat", "--model", "MODEL", "--top-p", "0"], "--top-p 0.0; give"),
        (["generate", "--model", "MODEL", "hi", "--logprobs", "2"], "give --output"),
        (["chat", "--model", "nowhere"], "nowhere"),
        (["chat", "--model", "MODEL", "--max-new-tokens", "0"], "--max-new-tokens 0; give"),
        (["bench", "--model", "MODEL", "--json", "nowhere/x.json"], "nowhere is not a folder"),
        (["bench", "--model", "MODEL", "--json", "MODEL/config.json"], "exists"),
        (["plan", "v5e:1x1", "--json", "nowhere/x.json"], "nowhere is not a folder"),
        (["bench", "--model", "MODEL", "--requests", "0"], "--requests 0; give"),
        (["bench", "--model", "MODEL", "--new-tokens", "0"], "--new-tokens 0; give"),
        (["bench", "--model", "MODEL", "--prompt-tokens", "4096"], "4096 positions"),
        (["bench", "--model", "MODEL", "--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["merge", "--model", "MODEL", "--out", "merged"], "--adapter"),
        (["export", "MODEL", "--out", "out"], "is the configuration of a model"),
        (["export", "nowhere", "--out", "out"], "nowhere is not the directory"),
        (["export", "nowhere", "--out", "MODEL"], "not an empty folder"),
        (["merge", "--model", "MODEL", "--adapter", "nowhere", "--out", "MODEL"], "not an empty folder"),
    ],
)
def test_wrong_input_ends_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([argument.replace("MODEL", checkpoint) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message.replace("MODEL", checkpoint) in error
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert not list(tmp_path.iterdir())
