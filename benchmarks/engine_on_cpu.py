"""Tokens per second of generation on the CPU in float32: our engine against transformers' ``generate``.

    python -m benchmarks.engine_on_cpu [--rounds 1] [--slots 16] [--before COMMIT]

All sides complete the same 64 prompts with the same random checkpoint of 100 million parameters, greedily and without
an end token. Prompts have 8 to 200 tokens, completions 16 to 1,024, both spread evenly over their logarithms.
transformers takes batches of 8 and of 16 prompts, sorted by the length of the completion, so that a batch wastes
little; the faster of both counts. ``--before`` adds the engine of an older commit, in batches likewise. Each side runs
in a process of its own, in turn, and its programs are compiled, and its threads warm, before the clock starts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROMPTS = 64


def checkpoint_config():
    """12 layers of width 512 and a vocabulary of 64k tokens: 101 million parameters with the MTP head."""
    import dataclasses

    from qwen35_jax import PRESETS

    base = PRESETS["0.8b"]
    text = dataclasses.replace(
        base.text, vocab_size=65_536, hidden_size=512, intermediate_size=1_792, num_hidden_layers=12, layer_types=(),
        num_attention_heads=4, num_key_value_heads=2, head_dim=128, linear_num_key_heads=8, linear_num_value_heads=8,
        linear_key_head_dim=64, linear_value_head_dim=128, eos_token_id=65_535,
        rope=dataclasses.replace(base.text.rope, mrope_section=(6, 5, 5)),
    )  # fmt: skip
    vision = dataclasses.replace(base.vision, depth=1, out_hidden_size=512)
    marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dataclasses.replace(base, text=text, vision=vision, **dict.fromkeys(marks, 65_530))


def workload() -> tuple[list[list[int]], list[int]]:
    """Returns prompts, and how many tokens follow each."""
    rng = np.random.default_rng(0)
    lengths = np.geomspace(8, 200, PROMPTS).astype(int)
    limits = np.geomspace(16, 1024, PROMPTS).astype(int)
    rng.shuffle(lengths)
    rng.shuffle(limits)
    return [rng.integers(0, 65_000, length).tolist() for length in lengths], limits.tolist()


def batches(limits: list[int], size: int) -> list[list[int]]:
    """Returns the places of prompts batch by batch, those with long completions first."""
    places = sorted(range(len(limits)), key=lambda place: -limits[place])
    return [places[start : start + size] for start in range(0, len(places), size)]


def plain_tokenizer():
    """Returns a tokenizer that encodes and decodes nothing: only the ends and the think marks are asked for."""
    from qwen35_jax.processing import Tokenizer

    class Plain(Tokenizer):
        def __init__(self):
            self.eos_token_ids, self.pad_token_id = (65_535,), 65_535

        def token_id(self, token):
            return {"<think>": 65_531, "</think>": 65_532}[token]

        def encode(self, text):
            return [65_532]

        def decode(self, ids, *, skip_special_tokens=True):
            return ""

    return Plain()


def run_ours(path: Path, slots: int) -> float:
    import qwen35_jax
    from qwen35_jax.inference.sampling import SamplingParams

    prompts, limits = workload()
    model = qwen35_jax.load(path, dtype="float32", vision=False)
    engine = qwen35_jax.Engine(model, plain_tokenizer(), slots=slots, cache_tokens=slots * 1_280)
    sampling = SamplingParams(ignore_end=True)
    engine.generate([prompts[0], [1] * 200], sampling=sampling, max_new_tokens=4)
    start = time.perf_counter()
    completions = engine.generate(prompts, sampling=sampling, max_new_tokens=limits)
    assert [len(completion.token_ids) for completion in completions] == limits
    return time.perf_counter() - start


def run_before(path: Path, slots: int) -> float:
    """Runs the engine of before slots, whose ``generate`` has one limit for all."""
    import qwen35_jax
    from qwen35_jax.inference.sampling import SamplingParams

    prompts, limits = workload()
    model = qwen35_jax.load(path, dtype="float32", vision=False)
    engine = qwen35_jax.Engine(model, plain_tokenizer(), max_batch=slots)

    def complete():
        for batch in batches(limits, slots):
            chosen = [prompts[place] for place in batch]
            engine.generate(chosen, sampling=SamplingParams(), max_new_tokens=max(limits[place] for place in batch))

    # Its programs depend on the lengths, so the whole work is done once for them.
    complete()
    start = time.perf_counter()
    complete()
    return time.perf_counter() - start


def run_theirs(path: Path, slots: int) -> float:
    import torch
    from transformers import AutoModelForImageTextToText

    prompts, limits = workload()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()

    def complete(batch: list[int], new_tokens: int) -> None:
        longest = max(len(prompts[place]) for place in batch)
        ids = [[0] * (longest - len(prompts[place])) + prompts[place] for place in batch]
        mask = [[0] * (longest - len(prompts[place])) + [1] * len(prompts[place]) for place in batch]
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            model.generate(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), **options)

    complete(batches(limits, slots)[-1], 4)
    start = time.perf_counter()
    for batch in batches(limits, slots):
        complete(batch, max(limits[place] for place in batch))
    return time.perf_counter() - start


SIDES = {"ours": run_ours, "theirs": run_theirs, "before": run_before}


def measure(side: str, path: Path, slots: int, folder: Path) -> float:
    """Returns the tokens per second of one side, measured in a process of its own with the code of ``folder``."""
    script = Path(__file__).resolve()
    command = [sys.executable, str(script), "--side", side, "--slots", str(slots), "--checkpoint", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=folder, env=_environment(folder))
    return sum(workload()[1]) / json.loads(done.stdout.splitlines()[-1])


def _environment(folder: Path) -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(folder)}


def compare(rounds: int, slots: int, before: str | None) -> None:
    """Prints the medians of all sides, and the ratios to ours."""
    from qwen35_jax.hf.create import create_checkpoint

    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        path, old = Path(temporary) / "checkpoint", Path(temporary) / "old"
        create_checkpoint(checkpoint_config(), path, seed=0, dtype="float32")
        sides = [("ours", slots, here), ("theirs", 16, here), ("theirs", 8, here)]
        if before:
            subprocess.run(["git", "worktree", "add", "--detach", str(old), before], check=True, cwd=here)
            sides.append(("before", 16, old))
        try:
            speeds = {(side, size): [] for side, size, _ in sides}
            for _ in range(rounds):
                for side, size, folder in sides:
                    speeds[side, size].append(measure(side, path, size, folder))
                    print(f"{side} ({size}): {speeds[side, size][-1]:.1f} tokens/s", flush=True)
        finally:
            if before:
                subprocess.run(["git", "worktree", "remove", "--force", str(old)], check=True, cwd=here)
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    for (side, size), speed in medians.items():
        print(
            f"{side:<7} {size:3d} at once  {speed:7.1f} tokens/s   ours / {side} {medians['ours', slots] / speed:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--before", metavar="COMMIT", help="also measure the engine of this commit")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is None:
        compare(args.rounds, args.slots, args.before)
    else:
        print(json.dumps(SIDES[args.side](args.checkpoint, args.slots)))


if __name__ == "__main__":
    main()
