"""Whole runs with an engine that answers from a table: files, resuming, protocols, wrong input."""

import dataclasses
import json
import types

import jax
import pytest

from eval import run as run_module
from eval.config import EvalConfig
from eval.run import main, run, seed_of_sample
from eval.summary import table
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.config import MTPConfig
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import MeshConfig
from tests.conftest import REPO
from tests.eval.conftest import FakeEngine, write_rows

ANSWERS = {
    "1+1?": "2",
    "2+2??": "The answer is 5",
    "3+3???": ("7 or so", "length"),
    "4+4????": "",
    "5+5?????": "**10**",
}


@pytest.fixture
def config(tmp_path):
    rows = [{"question": question, "answer": str(2 * int(question[0]))} for question in ANSWERS]
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", rows)
    return EvalConfig(tasks=("qa",), data_dir=str(tmp_path / "data"), out=str(tmp_path / "out"))


def samples(config, task="qa"):
    return [json.loads(line) for line in open(f"{config.out}/samples/{task}.jsonl")]


def files(folder):
    """What the files of an evaluation hold, apart from times and from where it lies."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}
    results = json.loads(texts.pop("results.json"))
    del results["seconds"], texts["report.html"]
    return texts | {"results": results}


def test_a_run_writes_what_the_contract_names(config, tmp_path):
    results = run(config, FakeEngine(ANSWERS))
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == results
    qa = stored["tasks"]["qa"]
    assert qa["n"] == 5
    assert qa["outcomes"] == {"ok": 3, "unparsed": 0, "truncated": 1, "loop": 0, "empty": 1, "error": 0}
    assert qa["metrics"]["accuracy"]["value"] == pytest.approx(0.4)
    assert 0 < qa["metrics"]["accuracy"]["low"] < 0.4 < qa["metrics"]["accuracy"]["high"] < 1
    assert (stored["mode"], stored["protocol"]) == ("non_thinking", "official")
    rows = {row["id"]: row for row in samples(config)}
    assert set(rows[0]) == {
        "id", "group", "repeat", "response", "thinking", "prediction", "target", "correct", "outcome", "finish_reason",
        "metrics", "prompt_ids", "token_ids", "close_positions", "multiple_closes", "closed_by_budget", "seed",
        "num_tokens",
        "engine", "template",
    }  # fmt: skip
    assert [rows[index]["outcome"] for index in range(5)] == ["ok", "ok", "truncated", "empty", "ok"]
    assert [rows[index]["correct"] for index in range(5)] == [True, False, False, False, True]
    assert (rows[1]["prediction"], rows[2]["finish_reason"], rows[3]["prediction"]) == ("5", "length", None)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "accuracy" in page and "40.00" in page and "The answer is 5" in page


def test_results_say_which_documents_were_asked_and_what_wrote_the_samples(config):
    config = dataclasses.replace(config, limit=3)
    results = run(config, FakeEngine(ANSWERS))
    [(engine, identity)] = results["engines"].items()
    assert {sample["engine"] for sample in samples(config)} == {engine} and identity["jax"] == jax.__version__
    assert results["limit"] == 3 and "3 documents, the first 3 of the data;" in table(results)
    assert run(config, FakeEngine({}))["engines"] == results["engines"], "a run that writes no sample keeps them"


def test_thinking_is_kept_apart_from_what_is_scored(config):
    answers = dict(ANSWERS)
    answers["1+1?"] = "maybe 3\n</think>\n\n2"
    answers["2+2??"] = ("4 4 4 4", "length")
    answers["3+3???"] = "6"
    engine = FakeEngine(answers)
    run(dataclasses.replace(config, mode="thinking", limit=3), engine)
    rows = {row["id"]: row for row in samples(config)}
    assert (rows[0]["thinking"], rows[0]["response"], rows[0]["outcome"]) == ("maybe 3", "2", "ok")
    assert (rows[1]["thinking"], rows[1]["response"], rows[1]["outcome"]) == ("4 4 4 4", "", "truncated")
    assert (rows[2]["thinking"], rows[2]["response"], rows[2]["outcome"]) == ("6", "", "empty")


def test_an_interrupted_run_goes_on_where_it_stopped(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(config, FakeEngine(ANSWERS, fail_after=2))
    assert [row["id"] for row in samples(config)] == [4, 3]
    assert not (tmp_path / "out" / "results.json").exists()
    with open(f"{config.out}/samples/qa.jsonl", "a") as file:
        file.write('{"id": 2, "respo')

    engine = FakeEngine(ANSWERS)
    resumed = run(config, engine)
    assert engine.calls[0]["questions"] == ["1+1?", "2+2??", "3+3???"]
    assert resumed["seconds"]["resumed_samples"] == 2
    whole = run(dataclasses.replace(config, out=config.out + "_whole"), FakeEngine(ANSWERS))
    assert files(tmp_path / "out") == files(tmp_path / "out_whole")
    assert resumed | {"seconds": 0} == whole | {"seconds": 0}

    idle = FakeEngine({})
    assert run(config, idle)["seconds"]["resumed_samples"] == 5
    assert idle.calls == []


def test_a_sample_that_failed_is_asked_for_again(config):
    run(config, FakeEngine(ANSWERS | {"1+1?": ("", "aborted")}))
    assert samples(config)[0]["outcome"] == "error"
    engine = FakeEngine(ANSWERS)
    results = run(config, engine)
    assert engine.calls[0]["questions"] == ["1+1?"]
    assert results["tasks"]["qa"]["outcomes"]["error"] == 0
    assert [sample["id"] for sample in samples(config)] == [0, 1, 2, 3, 4]


def test_repeats_give_several_samples_a_document_and_average_them(config):
    config = dataclasses.replace(config, protocol="card", repeats=3)
    engine = FakeEngine(ANSWERS)
    task = run(config, engine)["tasks"]["qa"]
    assert (task["n"], task["samples"], sum(task["outcomes"].values())) == (5, 15, 15)
    assert task["metrics"]["accuracy"]["value"] == pytest.approx(0.4)
    assert {(sample["id"], sample["repeat"]) for sample in samples(config)} == {
        (n, r) for n in range(5) for r in range(3)
    }
    [call] = engine.calls
    assert call["seed"] == [seed_of_sample(0, "qa", id, repeat) for id in range(5) for repeat in range(3)]
    assert len(set(call["seed"])) == 15, "every sample draws from a stream of its own"
    assert [sample["seed"] for sample in samples(config)] == call["seed"]


def test_a_run_with_repeats_goes_on_with_the_samples_that_are_missing(config):
    config = dataclasses.replace(config, protocol="card", repeats=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, FakeEngine(ANSWERS, fail_after=3))
    stored = {(sample["id"], sample["repeat"]) for sample in samples(config)}
    engine = FakeEngine(ANSWERS)
    task = run(config, engine)
    missing = [(id, repeat) for id in range(5) for repeat in range(2) if (id, repeat) not in stored]
    assert [call["seed"] for call in engine.calls] == [[seed_of_sample(0, "qa", *key) for key in missing]]
    assert (task["seconds"]["resumed_samples"], task["tasks"]["qa"]["samples"]) == (3, 10)


def test_a_style_without_a_prompt_names_the_protocol_that_has_one(tmp_path):
    write_rows(tmp_path / "gsm8k" / "test.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    config = EvalConfig(tasks=("gsm8k",), style="text", data_dir=str(tmp_path), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="protocol official; give --protocol lm-eval or --style chat"):
        run(config, FakeEngine({}))


class Headless(FakeEngine):
    """Its model has no MTP head."""

    model = types.SimpleNamespace(config=types.SimpleNamespace(text=dataclasses.replace(
        PRESETS["tiny"].text, mtp=MTPConfig(num_hidden_layers=0))))  # fmt: skip


def test_mtp_acceptance_needs_a_head(config, tmp_path):
    engine = Headless(ANSWERS)
    with pytest.raises(ValueError, match="needs a model with an MTP head"):
        run(dataclasses.replace(config, mtp_acceptance=True), engine)
    assert engine.calls == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"repeats": 2}, "qa decodes greedily under protocol official"),
        ({"repeats": 2, "protocol": "lm-eval"}, "qa decodes greedily under protocol lm-eval"),
        ({"mtp_acceptance": True, "protocol": "card"}, "qa samples under protocol card"),
        ({"style": "text", "mode": "thinking"}, "style text opens no think block"),
        ({"thinking_budget": 5}, "thinking_budget=5 needs --mode thinking"),
        (
            {"style": "likelihood"},
            "task qa has no prompt of style likelihood under protocol official; give --style chat",
        ),
        ({"style": "likelihood", "repeats": 2}, "leave out --sampling, --repeats and --mtp-acceptance"),
        ({"style": "likelihood", "mtp_acceptance": True}, "style likelihood writes no responses"),
        ({"style": "likelihood", "sampling": "card_eval"}, "style likelihood writes no responses"),
        ({"split": "val"}, "put the data of qa at"),
        ({"mesh": MeshConfig(context=2)}, "mesh.context=2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(config, **change), FakeEngine(ANSWERS))


@pytest.mark.parametrize(
    "change",
    [{"mode": "thinking"}, {"protocol": "card"}, {"limit": 2}, {"max_new_tokens": 9}, {"seed": 1}, {"data": True}],
)
def test_other_settings_or_data_need_another_directory(config, tmp_path, change):
    run(config, FakeEngine(ANSWERS))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    if change == {"data": True}:
        write_rows(tmp_path / "data" / "qa" / "test.jsonl", [{"question": "1+1?", "answer": "3"}])
    else:
        config = dataclasses.replace(config, **change)
    with pytest.raises(ValueError, match="was made with other settings"):
        run(config, FakeEngine(ANSWERS))
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_other_weights_at_the_same_path_need_another_directory(config, tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    build_tiny_tokenizer(["a"], weights.parent, vocab_size=300)
    weights.write_bytes(b"first")
    config = dataclasses.replace(config, model=ModelSource(path=str(weights.parent)))
    run(config, FakeEngine(ANSWERS))
    weights.write_bytes(b"second")
    with pytest.raises(ValueError, match=r"other settings .*weights"):
        run(config, FakeEngine(ANSWERS))


@pytest.mark.parametrize(
    ("protocol", "mode", "sampling", "max_new_tokens"),
    [
        ("official", "non_thinking", SamplingParams(), 4096),
        ("official", "thinking", SamplingParams(), 32768),
        ("lm-eval", "non_thinking", SamplingParams(), 256),
        ("card", "thinking", SamplingParams(1.0, 20, 0.95, 1.5), 32768),
        ("card", "non_thinking", SamplingParams(1.0, 20, 0.95, 1.5), 32768),
    ],
)
def test_protocols_set_sampling_and_length(config, protocol, mode, sampling, max_new_tokens):
    engine = FakeEngine(ANSWERS)
    run(dataclasses.replace(config, protocol=protocol, mode=mode), engine)
    [call] = engine.calls
    sampling = dataclasses.replace(sampling, budget_close="sentence")
    assert (call["sampling"], call["max_new_tokens"]) == ([sampling] * 5, [max_new_tokens] * 5)


@pytest.mark.parametrize(
    ("name", "mode", "sampling"),
    [
        ("greedy", "thinking", SamplingParams()),
        ("card_recommended", "thinking", SamplingParams(1.0, 20, 0.95, 1.5)),
        ("card_recommended", "non_thinking", SamplingParams(1.0, 20, 1.0, 2.0)),
        ("card_eval", "non_thinking", SamplingParams(1.0, 20, 0.95, 1.5)),
    ],
)
def test_both_sampling_sets_of_the_card_are_presets(config, name, mode, sampling):
    engine = FakeEngine(ANSWERS)
    run(dataclasses.replace(config, sampling=name, mode=mode), engine)
    assert engine.calls[0]["sampling"][0] == dataclasses.replace(sampling, budget_close="sentence")


def test_a_length_of_its_own_replaces_the_protocols(config):
    engine = FakeEngine(ANSWERS)
    run(dataclasses.replace(config, protocol="card", max_new_tokens=7), engine)
    assert engine.calls[0]["max_new_tokens"] == [7] * 5


def test_ifeval_runs_end_to_end(verifiers, tmp_path):
    rows = [
        {"key": 11, "prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "key": 12,
            "prompt": "bb",
            "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
            "kwargs": [{}, {}],
        },
    ]
    write_rows(tmp_path / "data" / "ifeval" / "train.jsonl", rows)
    config = EvalConfig(tasks=("ifeval",), data_dir=str(tmp_path / "data"), out=str(tmp_path / "out"))
    results = run(config, FakeEngine({"a": "yes", "bb": 'Here:\n"yes"'}))
    values = {name: metric["value"] for name, metric in results["tasks"]["ifeval"]["metrics"].items()}
    assert {name: values.pop(f"{name}_fixed") for name in list(values) if not name.endswith("_fixed")} == values
    assert values == {
        "prompt_strict": 0.5,
        "instruction_strict": pytest.approx(2 / 3),
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
    }
    assert [row["id"] for row in samples(config, "ifeval")] == [11, 12]


@pytest.mark.parametrize("name", ["tiny_eval", "eval_2b", "eval_vision_2b"])
def test_the_run_files_take_the_documented_flags(name, monkeypatch, tmp_path, capsys):
    seen = []

    def record(config):
        seen.append(config)
        return {"tasks": {}}

    monkeypatch.setattr(run_module, "run", record)
    flags = "--model.path M --tasks qa gsm8k --mode thinking --protocol lm-eval --limit 3 --data-dir D --out O"
    mesh = "--mesh.fsdp 4 --mesh.tensor 2"
    main([str(REPO / "configs" / f"{name}.py"), *flags.split(), *mesh.split()])
    main([str(REPO / "configs" / f"{name}.py")])
    config = seen[0]
    assert (config.model.path, config.tasks) == ("M", ("qa", "gsm8k"))
    assert (config.mode, config.protocol) == ("thinking", "lm-eval")
    assert (config.limit, config.data_dir, config.out) == (3, "D", "O")
    assert config.mesh == MeshConfig(fsdp=4, tensor=2)
    assert dataclasses.replace(seen[1], out="x", mode="thinking").out == "x"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data-dir", "DATA"], "no model is named; give --model.path"),
        (["--model.path", "nowhere/at/all", "--data-dir", "DATA"], "nowhere/at/all"),
        (["--tasks", "mmul"], "task 'mmul' does not exist"),
        (["--tasks"], "--tasks names no task"),
        (["--tasks", "qa", "qa"], "names a task twice"),
        (["--data-dir", "nowhere"], "no model is named; give --model.path"),
        (["--data-dir", "nowhere", "--model.path", "./absent"], "absent: no such folder"),
        (["--data-dir", "nowhere", "--model.path", "MODEL"], "nowhere/qa is not a folder"),
        (["--model.path", "MODEL"], "give --data-dir"),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--mode", "loud"], "loud"),
        (["--modes", "thinking"], "--modes"),
        (["--repeats", "2", "--model.path", "MODEL", "--data-dir", "DATA"], "decodes greedily"),
        (
            ["--protocol", "card", "--mtp-acceptance", "--model.path", "MODEL", "--data-dir", "DATA"],
            "under protocol card",
        ),
        (["--mesh.context", "2"], "--mesh.context 2: generation cannot split"),
        (["--tasks", "ifevall"], "Did you mean ifeval?"),
        (["--temperature", "1"], "Unrecognized options: --temperature, 1. (--help"),
        (["--mods", "thinking"], "Did you mean --mode?"),
    ],
)
def test_wrong_commands_end_in_one_line_and_write_nothing(config, tmp_path, capsys, flags, message):
    out, model = tmp_path / "fresh", build_tiny_tokenizer(["a"], tmp_path / "model", vocab_size=300)
    flags = [{"DATA": config.data_dir, "MODEL": str(model)}.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        main([str(REPO / "configs" / "tiny_eval.py"), *flags, "--out", str(out)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not out.exists()
