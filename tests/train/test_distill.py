"""The command: live and stored teachers, resumed runs, exports, and wrong input before anything large is loaded."""

import dataclasses
import json
import random

import numpy as np
import pytest

from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.presets import PRESETS
from tests.conftest import REPO
from tests.train.conftest import small_config
from tests.train.launching import kill, timeless, wait_for_save, wait_for_step
from train import teach
from train.distill import main
from train.observe.metrics import METRICS, read_entries

CONFIG = str(REPO / "configs" / "tiny_distill.py")
SIZES = ("--data.sequence-length", "64", "--data.sequences-per-batch", "4", "--steps", "6", "--checkpoint.every", "2")
PROGRAM = "from train.distill import main; import sys; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def teacher(inputs, tmp_path_factory):
    """A checkpoint that is wider than the student."""
    config, folder = small_config(), tmp_path_factory.mktemp("teacher") / "wide"
    text = dataclasses.replace(config.text, hidden_size=48)
    wide = dataclasses.replace(config, text=text, vision=dataclasses.replace(config.vision, out_hidden_size=48))
    return create_checkpoint(wide, folder, seed=1, dtype="float32", tokenizer_from=inputs / "tokenizer")


@pytest.fixture(scope="module")
def distil(inputs, teacher):
    """Runs the command in this process and returns the rows of its metrics."""

    def distil(workdir, *options, student=inputs / "base", teacher=teacher):
        files = {"--model.path": student, "--data.path": inputs / "train.jsonl", "--workdir": workdir}
        files |= {} if teacher is None else {"--teacher.path": teacher}
        main([CONFIG, *(str(each) for pair in files.items() for each in pair), *SIZES, *options])
        return read_entries(workdir / METRICS)

    return distil


def test_the_student_comes_nearer_to_a_live_teacher(distil, tmp_path, capfd):
    rows = distil(tmp_path / "run", "--optim.learning-rate", "1e-2", "--data.eval-fraction", "0.1")
    assert rows[-1]["eval_divergence"] < rows[0]["divergence"] / 2
    assert rows[-1]["eval_top_k_overlap"] > 0 and rows[-1]["mtp_acceptance"] > 0
    assert all(row["teacher_seconds"] > 0 < row["student_seconds"] for row in rows)
    told = capfd.readouterr().out
    assert "KL(student, student) 0" in told
    assert told.index("compiled the teacher in") < told.index("KL(student, student) 0")
    # The first batch is one micro-batch; the log has four digits.
    accepted = float(told.split("is accepted with probability ")[1].split()[0])
    assert accepted == pytest.approx(rows[0]["mtp_acceptance"], abs=1e-4)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["recipe"]["objective"]["kind"] == "distillation" and record["identity"]["teacher"]["model"]


def test_a_student_learns_nothing_from_its_own_base(distil, tmp_path):
    first, *_ = distil(tmp_path / "run", "--teacher.own-base", "--tune", "lora", teacher="")
    # New adapters change nothing; the teacher runs in a program of its own, which rounds otherwise.
    assert abs(first["divergence"]) < 1e-8 and first["agreement"] == 1
    identity = json.loads((tmp_path / "run" / "config.json").read_text())["identity"]
    # As a store of that teacher says it, so that a run may go on with either.
    assert identity["teacher"] == {name: identity[name] for name in ("model", "tokenizer")}


@pytest.mark.parametrize("signal", ["hidden", "topk"])
def test_a_stored_signal_trains_as_a_live_one(distil, inputs, teacher, tmp_path, signal):
    store = ("--teacher.store", str(tmp_path / "store"), "--teacher.signal", signal, "--teacher.k", "9")
    files = ("--model.path", inputs / "base", "--data.path", inputs / "train.jsonl", "--teacher.path", teacher)
    teach.main([CONFIG, *map(str, files), *SIZES, *store])
    stored = distil(tmp_path / "stored", *store, teacher=None)
    live = distil(tmp_path / "live", *store[2:])
    for one, other in zip(stored, live, strict=True):
        names = {name for name in one if not name.endswith(("seconds", "per_second"))}
        assert {name: one[name] for name in names} == {name: other[name] for name in names}


@pytest.mark.soak
@pytest.mark.parametrize("source", ["live", "stored"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(command, inputs, teacher, tmp_path, source):
    options = ["--teacher.path", str(teacher), *SIZES, "--steps", "12"]
    if source == "stored":
        store = ("--teacher.store", str(tmp_path / "store"))
        files = ("--model.path", inputs / "base", "--data.path", inputs / "train.jsonl")
        teach.main([CONFIG, *map(str, files), *options, *store])
        options += store
    where = {"config": CONFIG, "code": PROGRAM}
    command.run(tmp_path / "whole", *options, **where)
    kills = sorted(random.sample(range(4, 12), 3))
    print(f"killed after steps {kills}")
    for step in kills:
        processes = command.start(tmp_path / "run", *options, **where)
        wait_for_step(processes, tmp_path / "run", step)
        wait_for_save(processes, tmp_path / "run", 2)
        kill(processes)
    command.run(tmp_path / "run", *options, **where)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    [ours], [theirs] = ((tmp_path / name / "export").glob("*.safetensors") for name in ("run", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_the_export_of_a_student_loads_in_transformers(distil, tmp_path):
    import torch
    import transformers

    import qwen35_jax

    distil(tmp_path / "run", "--optim.learning-rate", "1e-2")
    export = tmp_path / "run" / "export"
    ids = np.arange(3, 40)[None]
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(export, dtype=torch.float32)
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    got = qwen35_jax.load(export, dtype="float32").logits(ids)
    # float32 products of another library; logits are about 0.1.
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.fixture(scope="module")
def others(inputs, tmp_path_factory):
    """Checkpoints that cannot teach."""
    folder, config = tmp_path_factory.mktemp("others"), small_config()
    text = dataclasses.replace(config.text, vocab_size=config.text.vocab_size + 64)
    create_checkpoint(
        dataclasses.replace(config, text=text), folder / "vocabulary", tokenizer_from=inputs / "tokenizer"
    )
    create_checkpoint(config, folder / "tokenizer", tokenizer_from=inputs / "tokenizer")
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    one, other = list(content["model"]["vocab"])[:2]
    ids = content["model"]["vocab"]
    ids[one], ids[other] = ids[other], ids[one]
    path.write_text(json.dumps(content))
    create_checkpoint(config, folder / "experts", tokenizer_from=inputs / "tokenizer")
    (folder / "experts" / "config.json").write_text(json.dumps(PRESETS["35b-a3b"].to_hf()))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--teacher.path", "none/such"), "none/such"),
        (("--teacher.path", "{others}/vocabulary"), "their distributions cannot be compared"),
        (("--teacher.path", "{others}/tokenizer"), "another tokenizer than the student"),
        (("--teacher.path", "{others}/experts"), "mixture-of-experts layers are not implemented yet"),
        (("--teacher.path", ""), "no teacher is named; give --teacher.path DIR"),
        (("--teacher.store", "{tmp}"), "{tmp}"),
        (("--teacher.own-base",), "takes the student's own base"),
        (("--teacher.own-base", "--teacher.path", ""), "shares the weights of the base, but this run trains them"),
        (("--teacher.signal", "logits"), "logits"),
        (("--teacher.signal", "topk", "--divergence", "jsd"), "needs the teacher's whole distribution"),
        (("--teacher.signal", "topk", "--loss-temperature", "2"), "needs the teacher's whole distribution"),
        (("--teacher.signal", "topk", "--teacher.k", "0"), "must be at least 1; 64 is a good start"),
        (("--teacher.signal", "topk", "--teacher.k", "999999"), "is more than the 512 token ids"),
        (("--divergence", "kl"), "forward_kl"),
        (("--divergence", "jsd", "--beta", "0"), "must lie strictly between 0 and 1"),
        (("--beta", "0.5"), "belongs to --divergence jsd"),
        (("--loss-temperature", "-1"), "must be positive; 1 changes nothing"),
        (("--divergence-weight", "0"), "must be positive, or nothing is distilled"),
        (("--mtp.target", "teachers"), "teachers"),
        (("--mtp.gradient", "joint"), "makes the model its own target"),
        (("--tune", "lora", "--lora.targets", "attention"), "reaches nothing that --lora.targets chooses"),
        (("--teacher.adapter", "none/adapter"), "none/adapter"),
        (("--checkpoint.best-by", "eval_los", "--data.eval-fraction", "0.1"), "eval_divergence"),
        (("--rollouts.answers", "2"), "rollouts"),
    ],
)
def test_wrong_settings_are_one_line(distil, others, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr("train.run.load", lambda *_, **__: pytest.fail("a model was loaded"))
    places = {"others": others, "tmp": tmp_path / "store"}
    with pytest.raises(SystemExit) as ended:
        distil(tmp_path / "run", *(option.format(**places) for option in options))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: ") and message.format(**places) in error, error
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_other_commands_are_named(inputs, capsys):
    from train.sft import main as sft

    for command, run_file in ((sft, CONFIG), (main, str(REPO / "configs" / "tiny_sft.py"))):
        with pytest.raises(SystemExit):
            command([run_file])
        assert "give a run file written for this command" in capsys.readouterr().err


def test_every_tensor_of_the_student_is_exported(distil, inputs, tmp_path):
    distil(tmp_path / "run", "--steps", "1", "--mtp.target", "labels", "--mtp.gradient", "joint")
    ours, theirs = (read_checkpoint(folder) for folder in (tmp_path / "run" / "export", inputs / "base"))
    assert ours.keys() == theirs.keys() and any(name.startswith("mtp.") for name in ours)
