"""``qwen35 bench`` on a tiny model: what it counts, and that nothing is compiled while the clock runs."""

import json

import jax
import pytest

from qwen35_jax.cli import main
from qwen35_jax.inference.bench import Measured
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.metrics import Drafted

SIZES = ["--dtype", "float32", "--slots", "2", "--cache-tokens", "512"]


def bench(checkpoint, tmp_path, *options) -> dict:
    out = tmp_path / "bench.json"
    main(["bench", "--model", checkpoint, *SIZES, "--json", str(out), *options])
    return json.loads(out.read_text())


def test_random_prompts_write_all_their_tokens(tiny_checkpoint, tmp_path, capsys):
    drafts = ["--speculative-tokens", "2"]
    figures = bench(tiny_checkpoint, tmp_path, "--requests", "3", "--prompt-tokens", "20", "--new-tokens", "9", *drafts)
    assert (figures["requests"], figures["prompt_tokens"], figures["generated_tokens"]) == (3, 60, 27)
    assert len(figures["first_token_seconds"]) == 3
    assert 0 < figures["first_token_p50_seconds"] <= figures["first_token_p95_seconds"] < figures["seconds"]
    positions, sections = figures["drafts"]["position"], figures["drafts"]["section"]
    # The engine drafts fewer than two tokens where drafts fail, as those of a random head do.
    assert positions["0"]["proposed"] > 0 and positions.keys() <= {"0", "1"}
    assert sum(each["proposed"] for each in sections.values()) == sum(each["proposed"] for each in positions.values())
    shown = capsys.readouterr().out
    assert "slots, speculative tokens" in shown and "drafts accepted by position" in shown


def test_prompts_of_a_file_end_as_the_model_ends_them(tiny_checkpoint, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"text": "{"word " * n}"}}\n' for n in (1, 2, 3)))
    figures = bench(tiny_checkpoint, tmp_path, "--input", str(source), "--requests", "2", "--new-tokens", "4")
    assert figures["requests"] == 2 and figures["generated_tokens"] <= 8
    assert "drafts" not in capsys.readouterr().out


def test_nothing_is_compiled_while_the_clock_runs(tiny_checkpoint, tmp_path, monkeypatch, caplog):
    """The warm-up compiles, and what follows does not, whatever the lengths of the prompts."""
    generate, compiled = Engine.generate, []

    def warm_up(self, *args, **settings):
        done = generate(self, *args, **settings)
        compiled.extend(caplog.messages)
        caplog.clear()
        return done

    monkeypatch.setattr(Engine, "generate", warm_up)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"text": "{"w" * n}"}}\n' for n in (150, 3, 40, 129, 1, 150)))
    with jax.log_compiles():
        bench(
            tiny_checkpoint,
            tmp_path,
            "--input",
            str(source),
            "--new-tokens",
            "5",
            "--slots",
            "3",
            "--cache-tokens",
            "832",
        )
    assert any("Compiling" in message for message in compiled)
    assert not [message for message in caplog.messages if "Compiling" in message]


def test_rates():
    first, drafts = [0.1, 0.2, 0.3, 0.4], {"position": {"0": Drafted(10, 7)}}
    measured = Measured(100, 44, prompt_seconds=0.5, seconds=2.5, first_token_seconds=first, drafts=drafts)
    assert (measured.prompt_rate, measured.rate, measured.decode_rate) == (200.0, 17.6, 20.0)
    figures = json.loads(json.dumps(measured.to_json()))
    assert figures["drafts"]["position"]["0"] == {"proposed": 10, "accepted": 7}
    assert figures["first_token_p50_seconds"] == pytest.approx(0.25)
