"""Tokens per second of distillation on the device at hand, with random weights, and where a step's time goes.

    python -m benchmarks.distill_on_device --teacher 4b --student 0.8b --tokens 8192 [--tokenizer DIR]

Times the program of the teacher, the student's step with LoRA on the teacher's signal, and, if a tokenizer is given,
rollouts of the same number of tokens. Each is compiled before it is timed. Takes less than five minutes on a GPU.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen35_jax import lora
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.lora import LoraConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import make_mesh
from train.batch import put_batch
from train.config import DataConfig, Distillation, ModelSource, Recipe, TeacherConfig, TrainConfig
from train.setup import make_setup
from train.signals.live import LiveTeacher
from train.state import init_state


def random_model(preset: str) -> Qwen35:
    """Makes a model of a published size in bfloat16."""
    with nnx.use_eager_sharding(False):
        return nnx.jit(
            lambda: Qwen35(
                PRESETS[preset], dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, vision=False, rngs=nnx.Rngs(0)
            )
        )()


def seconds_of(call: Callable[[], Any], times: int) -> float:
    """Returns the seconds of a call, after one that compiles."""
    jax.block_until_ready(call())
    began = time.perf_counter()
    for _ in range(times):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / times


def rollout_seconds(student: Qwen35, tokenizer: str, tokens: int, answers: int) -> float:
    """Returns the seconds in which the student samples so many tokens, in so many answers."""
    length = tokens // answers
    engine = Engine(student, Tokenizer.from_pretrained(tokenizer), slots=answers, cache_tokens=answers * (length + 768))
    prompts = np.random.default_rng(1).integers(0, 400, (answers, 64)).tolist()
    sampling = SamplingParams(temperature=1.0, logprobs=0, ignore_end=True)
    engine.generate(prompts, sampling=sampling, max_new_tokens=40)
    began = time.perf_counter()
    engine.generate(prompts, sampling=sampling, max_new_tokens=length)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="4b", choices=PRESETS)
    parser.add_argument("--student", default="0.8b", choices=PRESETS)
    parser.add_argument("--tokens", type=int, default=8192, help="of a step, in sequences of at most 4,096")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokenizer", metavar="DIR", help="folder with the tokenizer of Qwen3.5, for rollouts")
    parser.add_argument("--answers", type=int, default=64)
    args = parser.parse_args()
    length = min(args.tokens, 4096)
    teacher_config = TeacherConfig(width=PRESETS[args.teacher].text.hidden_size)
    config = TrainConfig(
        Recipe(
            ModelSource(),
            DataConfig(path="none", sequence_length=length, sequences_per_batch=args.tokens // length),
            steps=1_000,
            lora=LoraConfig(rank=16),
            objective=Distillation(teacher=teacher_config),
        )
    )
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.tokens} tokens a step", flush=True)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        student = random_model(args.student)
        lora.add(student, config.recipe.lora, 0)
        live = LiveTeacher(random_model(args.teacher), teacher_config, mesh)
        setup = make_setup(config, student, mesh, init_state, teacher_head=live.head)
        shape = (args.tokens // length, length)
        host = {
            "input_ids": np.random.default_rng(0).integers(0, 400, shape).astype(np.int32),
            "segment_ids": np.ones(shape, np.int32),
            "trained": np.ones(shape, bool),
        }
        batch = put_batch(host, accumulation=1, mesh=mesh)
        taught = batch | live.teach(batch)
        state = setup.state

        def step() -> Any:
            nonlocal state
            state, metrics = setup.step(state, setup.frozen, taught)
            return metrics

        parts = {
            "teacher": seconds_of(lambda: live.teach(batch), args.steps),
            "student": seconds_of(step, args.steps),
        }
        if args.tokenizer is not None:
            parts["rollouts"] = rollout_seconds(setup.model(state), args.tokenizer, args.tokens, args.answers)
    total = sum(parts.values())
    for name, seconds in parts.items():
        print(f"{name}: {1e3 * seconds:,.1f} ms, {seconds / total:.0%} of a step", flush=True)
    print(f"{args.tokens / total:,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
