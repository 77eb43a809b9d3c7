"""Two and four processes on one machine are one run: equal numbers, parts of the weights, common ends."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.train.launching import (
    LORA,
    REPO,
    environment,
    finish,
    free_port,
    kill,
    timeless,
    wait_for_save,
    wait_for_step,
)


def assert_equal_runs(ours, theirs):
    """Compares metrics and exported adapters."""
    ours_rows, theirs_rows = timeless(ours), timeless(theirs)
    assert len(ours_rows) == len(theirs_rows)
    for one, other in zip(ours_rows, theirs_rows, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            # float32 sums over rows in another order.
            np.testing.assert_allclose(value, other[name], rtol=1e-5, err_msg=f"{name} of step {one['step']}")
    for file in ("adapter_model.safetensors", "mtp/adapter_model.safetensors"):
        ours_export, theirs_export = (load_file(run / "export" / file) for run in (ours, theirs))
        assert ours_export.keys() == theirs_export.keys()
        for name, value in ours_export.items():
            # Nine steps of up to 7e-3 each.
            np.testing.assert_allclose(value, theirs_export[name], atol=1e-5, err_msg=name)


def test_two_processes_equal_one(command, whole_run, tmp_path):
    processes = command.start(tmp_path / "run", *LORA, "--mesh.data", "2", processes=2)
    finish(processes)
    assert_equal_runs(tmp_path / "run", whole_run[0])
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in whole_run[0].iterdir()}


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        pytest.param(2, 2, ("--mesh.fsdp", "2", "--mesh.tensor", "2"), marks=pytest.mark.slow),
        # Between the processes this one splits what two processes split in the test above.
        pytest.param(2, 2, ("--mesh.data", "2", "--mesh.context", "2"), marks=pytest.mark.soak),
        pytest.param(2, 1, ("--mesh.context", "2"), marks=pytest.mark.slow),
        pytest.param(4, 1, ("--mesh.data", "2", "--mesh.fsdp", "2"), marks=pytest.mark.slow),
    ],
)
def test_processes_and_meshes_equal_one_device(command, whole_run, tmp_path, processes, devices, mesh):
    command.run(tmp_path / "run", *LORA, *mesh, processes=processes, devices=devices)
    assert_equal_runs(tmp_path / "run", whole_run[0])


@pytest.mark.slow
def test_each_process_reads_its_own_shard_of_the_data(command, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        mesh = ("--data.shards", "2", "--mesh.data", str(processes))
        command.run(tmp_path / name, *LORA, *mesh, processes=processes)
    assert_equal_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_another_number_of_processes_goes_on_from_a_checkpoint(command, whole_run, tmp_path):
    workdir = tmp_path / "run"
    before = command.start(workdir, *LORA, "--mesh.data", "2", processes=2)
    wait_for_save(before, workdir, 3)
    kill(before)
    out = command.run(workdir, *LORA, "--mesh.tensor", "2", devices=2)
    assert "resumed after step 3" in out and "mesh.data, mesh.tensor differs" in out
    assert_equal_runs(workdir, whole_run[0])


@pytest.mark.slow
def test_a_signal_to_one_process_saves_in_all_after_the_same_step(command, whole_run, slow_data, tmp_path):
    workdir = tmp_path / "run"
    options = (*LORA, "--mesh.data", "2", "--checkpoint.every", "100")
    processes = command.start(workdir, *options, config=slow_data, processes=2)
    wait_for_step(processes, workdir, 2)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, code=75)
    [step] = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    # How soon the signal arrives depends on the machine; each process saves the step that both agree on.
    assert len(timeless(workdir)) == step < 9
    finish(command.start(workdir, *options, processes=2))
    assert_equal_runs(workdir, whole_run[0])


@pytest.mark.slow
def test_processes_with_different_settings_end_in_one_line(command, tmp_path):
    last = ("--optim.weight-decay", "0.5")
    for process in command.start(tmp_path / "run", *LORA, "--mesh.data", "2", processes=2, last=last):
        _, err = process.communicate(timeout=300)
        [line] = [line for line in err.splitlines() if line.startswith("error:")]
        assert process.returncode == 2 and "--optim.weight-decay is 0.0 in process 0 and 0.5 in process 1" in line


@pytest.mark.slow
def test_wrong_input_ends_every_process(command, tmp_path):
    processes = command.start(tmp_path / "run", *LORA, "--mesh.data", "2", "--data.path", "absent.jsonl", processes=2)
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2 and "absent.jsonl" in err


SCORED = """
from configs.tiny_sft import config as tiny
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams

def score(model, tokenizer):
    prompts = [tokenizer.encode(text) for text in ("What is 3 plus 4?", "What is", "It")]
    done = Engine(model, tokenizer, slots=2).generate(
        prompts, sampling=SamplingParams(temperature=0.0), max_new_tokens=6
    )
    return {"sum": sum(sum(completion.token_ids) for completion in done)}

def config():
    return tiny().replace(evaluate=score, evaluate_every=9)
"""


@pytest.mark.slow
def test_evaluation_and_samples_of_two_processes_equal_those_of_one(command, inputs, tmp_path):
    config = tmp_path / "scored.py"
    config.write_text(SCORED)
    (tmp_path / "prompts.jsonl").write_text('{"text": "What is 3"}\n{"text": "It is"}\n{"text": "What"}\n')
    samples = ("--samples.every", "9", "--samples.path", str(tmp_path / "prompts.jsonl"))
    samples += ("--samples.max-new-tokens", "6")
    for name, count in (("one", 1), ("two", 2)):
        mesh = ("--mesh.data", str(count))
        finish(command.start(tmp_path / name, *LORA, *mesh, *samples, config=str(config), processes=count))
    scores = [timeless(tmp_path / name)[-1]["eval_sum"] for name in ("one", "two")]
    answers = [(tmp_path / name / "samples" / "step_00000009.jsonl").read_text() for name in ("one", "two")]
    assert scores[0] == scores[1] and answers[0] == answers[1] and len(answers[0].splitlines()) == 3


PARTS = """
import json, sys
import jax, numpy as np
from flax import nnx
from qwen35_jax.hf import safetensors as files
from qwen35_jax.hf.load import load
from qwen35_jax.sharding import make_mesh
from qwen35_jax.distributed import ProcessConfig, gather, join

join(ProcessConfig(sys.argv[1], 2, int(sys.argv[2])))
read = [0]
whole = files.Stored.read

def counted(self, index, dtype):
    part = whole(self, index, dtype)
    read[0] += part.size
    return part

files.Stored.read = counted
model = load(sys.argv[3], "float32", make_mesh(fsdp=2))
arrays = jax.tree.leaves(nnx.state(model, nnx.Param))
held = sum(shard.data.size for x in arrays for shard in x.addressable_shards)
figures = gather({"read": read[0], "held": held, "all": sum(x.size for x in arrays)})
if jax.process_index() == 0:
    print(json.dumps(figures))
"""


def test_each_process_loads_its_part_of_the_weights_only(inputs, tmp_path):
    script = tmp_path / "parts.py"
    script.write_text(PARTS)
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(index), str(inputs / "base")],
            cwd=REPO, env=environment(devices=1), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    for figures in json.loads(finish(processes).splitlines()[-1]):
        assert figures["read"] == figures["held"]
        # Norms and decay rates are whole in both.
        assert 0.5 <= figures["held"] / figures["all"] < 0.55
