"""The main job from nothing to a scored and exported model, in minutes on a CPU.

    python -m examples.quickstart.run [--workdir runs/quickstart]

Makes a tiny Qwen3.5 checkpoint and trains it on plain text until it can serve as a base model. Then the main job:
score the base, fine-tune it with LoRA and the MTP loss on conversations, merge the adapter, score the result. The
commands are printed, and they are those of a real run, where the base is Qwen/Qwen3.5-2B-Base, the run files are
configs/lora_2b_v5e8.py and configs/eval_2b.py, and the data are yours.

It starts from nothing each time: an earlier quickstart in the same directory is removed. Takes 3 to 4 minutes on two
cores and ends with exit code 1 if fine-tuning did not work.
"""

import dataclasses
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.quickstart import task
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.sizes import resize
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.tokenizer import Tokenizer

REPORT = "quickstart.json"
LEAST_GAIN = 0.5
"""Of the accuracy with thinking, for the fine-tuning to count as working."""

_RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the quickstart works, and how long."""

    workdir: Path = Path("runs/quickstart")
    """Everything is written here; an earlier quickstart in it is removed."""
    base_steps: int = 500
    """Updates of all weights that make the base model."""
    lora_steps: int = 400
    """Updates of the adapter."""
    num_train: int = 6000
    """Conversations to fine-tune on."""
    num_test: int = 300
    """Held-out questions to score."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage took."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        settings = parse(
            sys.argv[1:] if argv is None else argv, Settings(), program="python -m examples.quickstart.run"
        )
        work = settings.workdir
        start_clean(work)
        stages = [make_inputs(settings)]
        stages += [run(name, command, cache=work / "compiled") for name, command in commands(settings)]
        scores = {model: read_scores(work / "scores" / model) for model in ("base", "tuned")}
    report = {"scores": scores, "stages": [dataclasses.asdict(stage) for stage in stages]}
    (work / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(scores, stages)}")
    print(f"\nA guessed digit is right with probability {1 / task.NUM_DIGITS}. See the tuned model reason:")
    question = task.make_problems(1, seed=2)[0].question
    command = [
        *(sys.executable, "-m", "qwen35_jax.cli", "generate", "--model", work / "merged"),
        *("--dtype", "float32", "--mode", "thinking", question),
    ]
    print(f"$ {shlex.join(map(str, command))}")
    if failure := what_failed(scores):
        raise SystemExit(f"the quickstart failed: {failure}")


def commands(settings: Settings) -> Iterator[tuple[str, list[Any]]]:
    """Yields name and command of every stage of the job, in order."""
    work = settings.workdir
    base, merged = work / "base" / "export", work / "merged"
    train = work / "data" / "train.jsonl"

    def score(name: str, model: Path) -> Iterator[tuple[str, list[Any]]]:
        scores = work / "scores" / name
        for mode, extra in (("thinking", ["--mtp-acceptance"]), ("non_thinking", [])):
            yield (
                f"score the {name} model, {mode}",
                [
                    *("eval.run", "configs/tiny_eval.py", "--model.path", model, "--data-dir", work / "data"),
                    *("--mode", mode, "--out", scores / mode, *extra),
                ],
            )

    yield (
        "train the base model",
        [
            *("train.sft", "configs/tiny_base.py", "--model.path", work / "random"),
            *("--data.path", work / "data" / "base.jsonl", "--steps", settings.base_steps, "--workdir", work / "base"),
        ],
    )
    yield from score("base", base)
    yield (
        "fine-tune with LoRA",
        [
            *("train.sft", "configs/tiny_sft.py", "--model.path", base, "--data.path", train),
            *("--data.sequence-length", 128, "--steps", settings.lora_steps, "--workdir", work / "lora"),
        ],
    )
    yield (
        "merge",
        [
            *("qwen35_jax.cli", "merge", "--model", base, "--adapter", work / "lora" / "export", "--out", merged),
        ],
    )
    yield from score("tuned", merged)


def start_clean(work: Path, name: str = "quickstart") -> None:
    """Makes the directory, without what an earlier run of this example left; anything else that lies there stays.

    Args:
      name: what the example is called, in messages and in the file that marks its directory.

    Raises:
      ValueError: the directory holds something else.
    """
    marker = work / f".{name.replace(' ', '_')}"
    if marker.exists():
        print(f"removing the earlier {name} in {work}")
        shutil.rmtree(work)
    elif work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise ValueError(f"{work} exists and holds no {name}; choose another --workdir, or move it away.")
    work.mkdir(parents=True, exist_ok=True)
    marker.touch()


def make_inputs(settings: Settings) -> Stage:
    """Writes what a real run begins with: the data, and a checkpoint, though one that knows nothing."""
    print("\n== make the data, a tokenizer and a random checkpoint", flush=True)
    began, work = time.perf_counter(), settings.workdir
    task.write_task(work / "data", num_texts=12_000, num_train=settings.num_train, num_test=settings.num_test)
    # The chat template's own words come in too, so that they are single tokens as in the original.
    texts = [*task.example_texts(), "user\n", "assistant\n", "\n\n"]
    folder = build_tiny_tokenizer(texts, work / "tokenizer")
    tokenizer = Tokenizer.from_pretrained(folder)
    # peft takes from the base where an answer ends. Greedy as long as nothing says how to sample.
    ends = {"eos_token_id": list(tokenizer.eos_token_ids), "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=4) + "\n", encoding="utf-8")
    create_checkpoint(model_config(tokenizer), work / "random", tokenizer_from=folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Stage("make the inputs", time.perf_counter() - began, time.process_time(), used.ru_maxrss * _RUSAGE_UNIT)


def model_config(tokenizer: Tokenizer) -> ModelConfig:
    """Returns a tiny model that learns fast: half the layers are attention, and the weights begin larger than usual."""
    sizes = {
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "intermediate_size": 192,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "initializer_range": 0.1,
    }
    return resize(PRESETS["tiny"], sizes, tokenizer=tokenizer)


def run(name: str, command: Sequence[Any], *, cache: Path) -> Stage:
    """Prints and runs ``python -m COMMAND``; compiled programs are shared through the folder ``cache``.

    Raises:
      SystemExit: the command failed; it has said why.
    """
    arguments = ["-m", *map(str, command)]
    print(f"\n== {name}\n$ python {shlex.join(arguments)}", flush=True)
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment | os.environ)
    _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the quickstart stopped: '{name}' ended with exit code {code}")
    cpu_seconds = used.ru_utime + used.ru_stime
    return Stage(name, time.perf_counter() - began, cpu_seconds, used.ru_maxrss * _RUSAGE_UNIT)


def read_scores(folder: Path) -> dict[str, Any]:
    """Collects the accuracies, each with ``value``, ``low``, ``high`` and ``n``, and the acceptance of MTP drafts."""
    scores: dict[str, Any] = {}
    for mode in ("thinking", "non_thinking"):
        result = json.loads((folder / mode / "results.json").read_text(encoding="utf-8"))["tasks"]["qa"]
        scores[mode] = result["metrics"]["accuracy"] | {"n": result["n"]}
        if mode == "thinking":
            scores["mtp"] = result["metrics"]["mtp_acceptance"]
    return scores


def table(scores: Mapping[str, Mapping[str, Any]], stages: Sequence[Stage]) -> str:
    """Lays out what was measured: the scores before and after, then what each stage took."""

    def accuracy(score: Mapping[str, float]) -> str:
        return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"

    def acceptance(score: Mapping[str, float]) -> str:
        return f"{score['accepted'] / max(score['proposed'], 1):.3f} of {score['proposed']:,}"

    base, tuned = scores["base"], scores["tuned"]
    rows = [("held-out questions", "before", "after")]
    for mode, label in (("thinking", "accuracy, thinking"), ("non_thinking", "accuracy, non-thinking")):
        rows.append((f"{label}, n = {base[mode]['n']}", accuracy(base[mode]), accuracy(tuned[mode])))
    rows.append(("MTP drafts accepted, thinking", acceptance(base["mtp"]), acceptance(tuned["mtp"])))
    lines = [f"{name:<36}{before:<24}{after}" for name, before, after in rows]
    lines += ["", f"{'stage':<36}{'seconds':>10}{'CPU seconds':>14}{'peak memory':>14}"]
    seconds, cpu_seconds = (sum(getattr(stage, field) for stage in stages) for field in ("seconds", "cpu_seconds"))
    total = Stage("all", seconds, cpu_seconds, max(stage.peak_bytes for stage in stages))
    for stage in (*stages, total):
        memory = f"{stage.peak_bytes / 2**20:,.0f} MiB"
        lines.append(f"{stage.name:<36}{stage.seconds:>10.1f}{stage.cpu_seconds:>14.1f}{memory:>14}")
    return "\n".join(lines)


def what_failed(scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Says how the scores fall short of a fine-tuning that works; None if they do not."""
    before, after = (scores[model]["thinking"]["value"] for model in ("base", "tuned"))
    if after - before < LEAST_GAIN:
        return f"accuracy with thinking went from {before:.3f} to {after:.3f}, not up by {LEAST_GAIN}"
    drafts = [scores[model]["mtp"] for model in ("base", "tuned")]
    before, after = (draft["accepted"] / max(draft["proposed"], 1) for draft in drafts)
    if after <= before:
        return f"the acceptance of MTP drafts went from {before:.3f} to {after:.3f}, not up"
    return None


if __name__ == "__main__":
    main()
