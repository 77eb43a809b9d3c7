"""Two processes that share a model generate what one does."""

import json
import subprocess
import sys

import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.hf.create import create_checkpoint
from tests.train.conftest import small_config
from tests.train.launching import REPO, environment, finish, free_port

GENERATE = """
import json, sys
import jax
from qwen35_jax.distributed import ProcessConfig, join
from qwen35_jax.hf.load import load
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.inference.speculative import acceptance_by_completion
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import make_mesh

base, axis, address, count, index = sys.argv[1:]
if count != "1":
    join(ProcessConfig(address, int(count), int(index)))
model = load(base, "float32", make_mesh(**{axis: int(count)}))
tokenizer = Tokenizer.from_pretrained(base)
prompts = [tokenizer.encode(text) for text in ("What is 3 plus 4?", "What", "It is 11. What is 2")]
greedy, sampled = SamplingParams(temperature=0.0), SamplingParams(1.0, top_k=20, top_p=0.9, presence_penalty=1.0)
engine, out = Engine(model, tokenizer, slots=4), []
for sampling in (greedy, sampled):
    done = engine.generate(prompts, sampling=sampling, max_new_tokens=8, seed=3)
    out.append([completion.token_ids for completion in done])
out.append(acceptance_by_completion(model, prompts, out[0]))
print(json.dumps(out))
"""


@pytest.mark.slow
def test_two_processes_generate_what_one_does(tmp_path):
    build_tiny_tokenizer([f"What is {a} plus 2? It is {a + 2}." for a in range(99)], tmp_path / "tok", vocab_size=400)
    create_checkpoint(small_config(), tmp_path / "base", seed=0, dtype="float32", tokenizer_from=tmp_path / "tok")

    def start(axis, count):
        address = f"127.0.0.1:{free_port()}"
        arguments = [(str(tmp_path / "base"), axis, address, str(count), str(index)) for index in range(count)]
        return [
            subprocess.Popen(
                [sys.executable, "-c", GENERATE, *each], cwd=REPO, env=environment(devices=1), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for each in arguments
        ]  # fmt: skip

    def outcome(processes):
        return json.loads(finish(processes).splitlines()[-1])

    want = outcome(start("data", 1))
    for axis in ("data", "fsdp"):
        assert outcome(start(axis, 2)) == want
