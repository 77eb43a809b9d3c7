"""Teaches a tiny Qwen3.5, its vision tower included, to read drawn pictures and short videos, in minutes on a CPU.

    python -m examples.vision.run [--workdir runs/vision]

Draws pictures and videos, makes a random checkpoint, trains all of its weights on questions and answers, and asks it
about others that it has not seen. Then it asks the same about grey pictures. What the model still gets right there, it
has guessed. The commands are printed, and they are those of a real run.

It starts from nothing each time: an earlier example in the same directory is removed. Takes about 10 minutes on two
quiet cores and ends with exit code 1 if the model did not learn to see.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.stats import wilson
from examples.quickstart.run import run, start_clean
from examples.quickstart.tokenizer import build_tiny_tokenizer
from examples.vision import task
from examples.vision.task import KINDS
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.sizes import resize
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.processing.tokenizer import Tokenizer

NAME = "vision example"
REPORT = "vision.json"
SEEN, BLANK = "seen", "blank"
LEAST_GAIN = 0.3
"""Of the accuracy of each kind of question over that with grey pictures, for the example to count as working."""

_SIZES = {
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "initializer_range": 0.06,
    "mtp_num_hidden_layers": 0,
    "vision.depth": 3,
    "vision.hidden_size": 96,
    "vision.intermediate_size": 192,
    "vision.num_heads": 3,
    "vision.initializer_range": 0.06,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the example works, and how long."""

    workdir: Path = Path("runs/vision")
    """Everything is written here; an earlier example in it is removed."""
    steps: int = 1000
    """Updates of all weights."""
    num_train: int = 12_000
    """Pictures and videos to train on."""
    num_test: int = 800
    """Held-out pictures and videos, each with one question."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        settings = parse(sys.argv[1:] if argv is None else argv, Settings(), program="python -m examples.vision.run")
        work = settings.workdir
        start_clean(work, NAME)
        scenes = make_inputs(settings)
        for name, command in commands(settings):
            run(name, command, cache=work / "compiled")
        scores = {name: score(work / f"{name}-answers.jsonl", scenes) for name in (SEEN, BLANK)}
    (work / REPORT).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(scores)}")
    if failed := [kind for kind in KINDS if scores[SEEN][kind]["value"] - scores[BLANK][kind]["value"] < LEAST_GAIN]:
        raise SystemExit(f"the example failed: {', '.join(failed)} gained less than {LEAST_GAIN} over grey pictures")


def make_inputs(settings: Settings) -> list[task.Scene]:
    """Writes the data and a checkpoint that knows nothing; returns the held-out scenes."""
    print("\n== draw the pictures, make a tokenizer and a random checkpoint", flush=True)
    work, test = settings.workdir, task.draw_scenes(settings.num_test, seed=1)
    task.write_training(work / "train", task.draw_scenes(settings.num_train, seed=0), seed=2)
    task.write_questions(work / SEEN, test)
    task.write_questions(work / BLANK, [task.blank(scene) for scene in test])
    folder = build_tiny_tokenizer([*task.example_texts(), *["user\n", "assistant\n", "\n\n"] * 100], work / "tokenizer")
    area, frames = task.SIDE**2, task.NUM_FRAMES
    image = ImageSettings(min_pixels=area, max_pixels=area)
    video = VideoSettings(min_pixels=area, max_pixels=frames * area)
    _write_json(folder / "preprocessor_config.json", image.to_json())
    _write_json(folder / "video_preprocessor_config.json", video.to_json())
    tokenizer = Tokenizer.from_pretrained(folder)
    config = resize(PRESETS["tiny"], _SIZES, tokenizer=tokenizer)
    create_checkpoint(config, work / "random", dtype="float32", tokenizer_from=folder)
    return test


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def commands(settings: Settings) -> Iterator[tuple[str, list[Any]]]:
    """Yields name and command of every stage, in order."""
    work = settings.workdir
    yield (
        "train",
        [
            *("train.sft", "configs/tiny_vision.py", "--model.path", work / "random"),
            *("--data.path", work / "train.jsonl", "--steps", settings.steps, "--workdir", work / "run"),
        ],
    )
    for name in (SEEN, BLANK):
        yield (
            f"answer the held-out questions, {name} pictures",
            [
                *("qwen35_jax.cli", "generate", "--model", work / "run" / "export", "--dtype", "float32"),
                *("--input", work / f"{name}.jsonl", "--output", work / f"{name}-answers.jsonl"),
                *("--max-new-tokens", 16, "--temperature", 0),
            ],
        )


def score(answers: Path, scenes: Sequence[task.Scene]) -> dict[str, dict[str, float]]:
    """Returns for each kind of question the share of right answers, its interval and the number of questions."""
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for number, (scene, row) in enumerate(zip(scenes, rows, strict=True)):
        kind = task.kind_asked(number)
        right[kind].append(row["response"].strip() == scene.answers[kind])
    scores = {}
    for kind, values in right.items():
        low, high = wilson(sum(values), len(values))
        scores[kind] = {"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)}
    return scores


def table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lays out how often the model is right, with 95 % intervals."""
    lines = [f"{'held-out questions':<28}{'guessing':<12}{'grey pictures':<24}pictures"]
    for kind, about in KINDS.items():
        blank, seen = (
            f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"
            for each in (scores[BLANK][kind], scores[SEEN][kind])
        )
        question = f"{about.question} n = {scores[SEEN][kind]['n']}"
        lines.append(f"{question:<28}{about.chance:<12.3f}{blank:<24}{seen}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
