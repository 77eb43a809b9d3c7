"""What drafts of a trained MTP head gain on a CPU in float32: the quickstart's task with a larger model.

    python -m benchmarks.speculation [--steps 400] [--slots 8] [--model DIR]

Trains a model of 23 million parameters and its MTP head on the quickstart's conversations, about 15 minutes on two
cores, then answers held-out questions in thinking mode with 0 to 3 drafts a step: greedily, and drawn at temperature 1.
Greedy answers must be the same with drafts as without. ``--model`` takes the folder that an earlier run has printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.quickstart import task
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax import PRESETS, Engine, SamplingParams, load
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.sizes import resize
from qwen35_jax.processing import Tokenizer

SIZES = {
    "num_hidden_layers": 8, "full_attention_interval": 4, "hidden_size": 448, "intermediate_size": 1344,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
QUESTIONS, MAX_NEW_TOKENS, ROUNDS = 96, 64, 3


def train(work: Path, steps: int) -> Path:
    """Makes the checkpoint, trains all its weights on conversations, and returns the export."""
    texts = [*task.example_texts(), "user\n", "assistant\n", "\n\n"]
    folder = build_tiny_tokenizer(texts, work / "tokenizer")
    config = resize(PRESETS["tiny"], SIZES, tokenizer=Tokenizer.from_pretrained(folder))
    create_checkpoint(config, work / "random", tokenizer_from=folder)
    task.write_task(work / "data", num_texts=1, num_train=6000, num_test=QUESTIONS)
    command = [
        *(sys.executable, "-m", "train.sft", "configs/tiny_base.py", "--model.path", work / "random"),
        *("--data.path", work / "data" / "train.jsonl", "--steps", steps, "--workdir", work / "run"),
        *("--data.sequence-length", 128, "--data.sequences-per-batch", 8, "--optim.learning-rate", 1e-3),
    ]
    subprocess.run([str(part) for part in command], check=True, cwd=Path(__file__).resolve().parents[1])
    return work / "run" / "export"


def answer(engine: Engine, prompts: list[list[int]], sampling: SamplingParams) -> tuple[list[list[int]], float]:
    """Returns the completions and the tokens per second, the median of some rounds."""
    engine.generate(prompts, sampling=sampling, max_new_tokens=4)
    speeds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        completions = engine.generate(prompts, sampling=sampling, max_new_tokens=MAX_NEW_TOKENS)
        written = [completion.token_ids for completion in completions]
        speeds.append(sum(map(len, written)) / (time.perf_counter() - start))
    return written, statistics.median(speeds)


def compare(path: Path, slots: int) -> None:
    """Prints speed and acceptance by number of drafts."""
    model, tokenizer = load(path, dtype="float32", vision=False), Tokenizer.from_pretrained(path)
    questions = [problem.question for problem in task.make_problems(6000 + QUESTIONS, seed=0)[6000:]]
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": question}], enable_thinking=True) for question in questions
    ]
    for name, sampling in (("greedy", SamplingParams()), ("temperature 1", SamplingParams(temperature=1.0))):
        plain_answers, plain_speed = None, None
        for drafts in range(4):
            engine = Engine(model, tokenizer, slots=slots, cache_tokens=slots * 256, speculative_tokens=drafts)
            answers, speed = answer(engine, prompts, sampling)
            plain_answers, plain_speed = plain_answers or answers, plain_speed or speed
            if sampling.temperature == 0 and answers != plain_answers:
                raise SystemExit(f"with {drafts} drafts a greedy answer is another one")
            counts, accepted = engine.metrics.drafts, ""
            if drafts:
                by_position = {place: round(part.acceptance, 3) for place, part in engine.metrics.by_position.items()}
                accepted = (
                    f"accepted {counts.acceptance:.3f} of {counts.proposed:,}, by position {json.dumps(by_position)}"
                )
            print(f"{name:<14} {drafts} drafts {speed:8.1f} tokens/s  {speed / plain_speed:5.2f}x  {accepted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--model", type=Path, help="a model trained by an earlier run")
    args = parser.parse_args()
    path = args.model
    if path is None:
        path = train(Path(tempfile.mkdtemp(prefix="speculation-")), args.steps)
        print(f"the trained model is in {path}", flush=True)
    compare(path, args.slots)


if __name__ == "__main__":
    main()
