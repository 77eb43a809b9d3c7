"""Compares ways to teach a small student: labels, text of a teacher, and distillation, stored, live and on-policy.

    python -m examples.distillation.run [--workdir runs/distillation] [--kind short|long]

A teacher learns from 20,000 conversations of a task whose true distribution is known; students have 400. Every command
is that of a real run and prints into ``logs``. docs/distillation_experiment.md has the question and what was found. The
long kind of the task has longer answers and compares on-policy training with a stored signal alone.

Given again after it was stopped, it goes on where it was. Takes about 20 minutes on two quiet cores.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import random
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.distillation import arms, labels, report, task
from examples.distillation.arms import ARMS, Command, Place
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.best import METRICS
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.sizes import resize
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.tokenizer import Tokenizer

RESULTS, SETTINGS, STAGES = "results.json", "settings.json", "stages.jsonl"

_SIZES = {
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "initializer_range": 0.1,
    "mtp_num_hidden_layers": 0,
    "vocab_size": 384,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the experiment works, and how large it is."""

    workdir: Path = Path("runs/distillation")
    kind: task.KindName = "short"
    """Of the task, and so which students are compared."""
    seeds: int = 3
    """Each has its own conversations and questions; base and teacher are the same."""
    steps: int = 400
    """Updates of a student."""
    rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2)
    """Learning rates of students. The one at which labels do best on other conversations is taken for all arms. The
    long kind has no labels and takes the middle one, which was found best for the short."""
    num_student: int = 400
    """Conversations of a student."""
    num_teacher: int = 20_000
    """Conversations of the teacher, and of the base."""
    base_steps: int | None = None
    """Of the base that students begin from. In its conversations all forms are as likely as the others."""
    teacher_steps: int | None = None
    """The kind of the task decides both where they are not given."""
    shuffled_steps: int = 500
    """Of the control, a teacher whose answers belong to other questions."""
    questions: int = 1000
    """Held-out questions of each seed."""
    jobs: int = 2
    """Commands that run at the same time."""

    def decide(self) -> "Settings":
        """Returns these settings with the steps of base and teacher decided."""
        kind = task.KINDS[self.kind]
        base, teacher = self.base_steps or kind.base_steps, self.teacher_steps or kind.teacher_steps
        return dataclasses.replace(self, base_steps=base, teacher_steps=teacher)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        settings = parse(
            sys.argv[1:] if argv is None else argv, Settings(), program="python -m examples.distillation.run"
        ).decide()
        prepare(settings)
        results = Experiment(settings).run()
    text = report.table(results)
    (settings.workdir / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{settings.workdir / RESULTS} holds these figures.")


def prepare(settings: Settings) -> None:
    """Writes data and initial checkpoints, unless an earlier call with the same settings did.

    Raises:
      ValueError: the directory holds something else.
    """
    work, values = settings.workdir, {**dataclasses.asdict(settings), "workdir": None, "jobs": None}
    values = json.loads(json.dumps(values))
    if (work / SETTINGS).exists():
        if json.loads((work / SETTINGS).read_text(encoding="utf-8")) != values:
            raise ValueError(f"{work} holds an experiment with other settings; choose another --workdir.")
        return
    if work.exists() and any(work.iterdir()):
        raise ValueError(f"{work} exists and holds no experiment; choose another --workdir.")
    (work / "logs").mkdir(parents=True)
    folder = build_tiny_tokenizer([*task.example_texts(), *["user\n", "assistant\n", "\n\n"] * 100], work / "tokenizer")
    tokenizer = Tokenizer.from_pretrained(folder)
    for name in ("teacher", "shuffled"):
        _make_model(work / f"{name}-start", tokenizer, folder, width=96, seed=0)
    _make_model(work / "base-start", tokenizer, folder, width=64, seed=1)
    draw = functools.partial(task.draw_conversations, kind=settings.kind)
    task.write_conversations(work / "base.jsonl", draw(settings.num_teacher, seed=2, rough=True))
    conversations = draw(settings.num_teacher, seed=0)
    task.write_conversations(work / "teacher.jsonl", conversations)
    task.write_conversations(work / "shuffled.jsonl", _shuffle(conversations, settings.kind))
    task.write_conversations(work / "dev.jsonl", draw(200, seed=1))
    for seed in range(settings.seeds):
        own = Place(work, seed, settings.steps, 0.0).folder
        own.mkdir()
        conversations = draw(settings.num_student, seed=100 + seed)
        task.write_conversations(own / "train.jsonl", conversations)
        _write_questions(own / "questions.jsonl", [problem for problem, _ in conversations])
    (work / SETTINGS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _make_model(out: Path, tokenizer: Tokenizer, folder: Path, *, width: int, seed: int) -> None:
    sizes = {**_SIZES, "hidden_size": width, "intermediate_size": 2 * width}
    config = resize(PRESETS["tiny"], sizes, tokenizer=tokenizer, text_only=True)
    create_checkpoint(config, out, seed=seed, dtype="float32", tokenizer_from=folder)


def _shuffle(conversations: Sequence[tuple[task.Problem, str]], kind: task.KindName) -> list[tuple[task.Problem, str]]:
    """Gives every question the answer to another one with as many turns."""
    shuffled = list(conversations)
    for count in task.KINDS[kind].num_turns:
        places = [place for place, (problem, _) in enumerate(conversations) if len(problem.turns) == count]
        others = random.Random(count).sample(places, len(places))
        for place, other in zip(places, others, strict=True):
            shuffled[place] = conversations[place][0], conversations[other][1]
    return shuffled


def _write_questions(path: Path, problems: Sequence[task.Problem]) -> None:
    rows = ({"messages": [{"role": "user", "content": problem.question}]} for problem in problems)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Experiment:
    """Runs the commands that have not been run yet, several at a time."""

    def __init__(self, settings: Settings):
        self._settings, self._work = settings, settings.workdir
        self._lock = threading.Lock()
        self._stages: dict[str, dict[str, Any]] = {}
        if (self._work / STAGES).exists():
            lines = (self._work / STAGES).read_text(encoding="utf-8").splitlines()
            self._stages = {stage["name"]: stage for stage in map(json.loads, lines)}

    def run(self) -> dict[str, Any]:
        """Returns the results of all arms and seeds."""
        settings, is_short = self._settings, self._settings.kind == "short"
        with concurrent.futures.ThreadPoolExecutor(settings.jobs) as pool:
            base = pool.submit(self._train, "base", settings.base_steps)
            teachers = [pool.submit(self._train, "teacher", settings.teacher_steps)]
            if is_short:
                teachers.append(pool.submit(self._train, "shuffled", settings.shuffled_steps))
            base.result()
            tuning = [pool.submit(self._tune, rate) for rate in settings.rates if is_short]
            losses = [each.result() for each in tuning]
            rates = settings.rates
            rate = rates[losses.index(min(losses))] if is_short else rates[len(rates) // 2]
            for each in teachers:
                each.result()
            places = [self._place(seed, rate) for seed in range(settings.seeds)]
            groups = _GROUPS if is_short else (tuple(ARMS["long"]),)
            for each in [pool.submit(self._arms, place, group) for place in places for group in groups]:
                each.result()
            measured = list(pool.map(self._measure, places))
        seeds = [each["arms"] for each in measured]
        found = report.combine(seeds)
        return {
            "settings": json.loads((self._work / SETTINGS).read_text(encoding="utf-8")),
            "rate": rate,
            "dev_losses": dict(zip(map(str, rates), losses, strict=False)),
            "floor": {
                name: sum(each["floor"][name] for each in measured) / len(measured) for name in measured[0]["floor"]
            },
            "arms": found,
            "seeds": seeds,
            "costs": self._costs(),
            "claims": report.claims(found, seeds),
        }

    def _place(self, seed: int, rate: float) -> Place:
        return Place(self._work, seed, self._settings.steps, rate, self._settings.kind)

    def _train(self, name: str, steps: int | None) -> None:
        names = ["--model.path", self._work / f"{name}-start", "--data.path", self._work / f"{name}.jsonl"]
        more = ["--steps", steps, "--optim.learning-rate", 3e-3, "--workdir", self._work / name]
        more += arms.length_of(self._settings.kind)
        self._stage(name, ["train.sft", arms.LABELS, *names, *more])

    def _tune(self, rate: float) -> float:
        """Returns the lowest loss on other conversations while training on labels at a rate."""
        name = f"tune-{rate:g}"
        place = self._place(0, rate)
        self._stage(name, place.fine_tune(name, data=place.folder / "train.jsonl", steps=self._settings.steps))
        rows = _read_rows(place.folder / name / METRICS)
        return min(row["eval_loss"] for row in rows if row.get("eval_loss") is not None)

    def _arms(self, place: Place, group: Sequence[str]) -> None:
        for arm in group:
            for name, command in arms.commands(place, arm):
                self._stage(f"{place.folder.name}/{arm}/{name}", command)
                if name == "write":
                    _make_conversations(place.folder)

    def _measure(self, place: Place) -> dict[str, Any]:
        self._stage(f"{place.folder.name}/measure", arms.measure(place, questions=self._settings.questions))
        found = json.loads((place.folder / "figures.json").read_text(encoding="utf-8"))
        names = (*ARMS[self._settings.kind], "teacher")
        return {"floor": found["floor"], "arms": dict(zip(names, found["models"].values(), strict=True))}

    def _stage(self, name: str, command: Command) -> None:
        """Runs ``python -m COMMAND``, unless it was run before.

        Raises:
          ValueError: it failed.
        """
        if name in self._stages:
            return
        arguments = ["-m", *map(str, command)]
        print(f"{name}: python {shlex.join(arguments)}", flush=True)
        log = self._work / "logs" / f"{name.replace('/', '-').replace(' ', '-')}.log"
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str((self._work / "compiled").absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        began = time.perf_counter()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=environment | os.environ, stdout=file, stderr=subprocess.STDOUT
            )
            _, status, used = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise ValueError(f"{name} ended with exit code {code}; {log} says why.")
        stage = {"name": name, "seconds": time.perf_counter() - began, "cpu_seconds": used.ru_utime + used.ru_stime}
        with self._lock:
            self._stages[name] = stage
            with (self._work / STAGES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(stage) + "\n")

    def _costs(self) -> dict[str, dict[str, float]]:
        """Returns what each arm cost, as the mean over seeds, then what the rest cost."""
        costs = {}
        for arm in ARMS[self._settings.kind]:
            own = [stage for name, stage in self._stages.items() if f"/{arm}/" in name]
            costs[arm] = {key: sum(each[key] for each in own) / self._settings.seeds for key in _TIMES}
            costs[arm]["teacher_tokens"] = self._teacher_tokens(arm)
        for name, words in (
            ("base and teachers", ("base", "teacher", "shuffled")),
            ("tuning", ("tune",)),
            ("measuring", ("measure",)),
        ):
            own = [stage for key, stage in self._stages.items() if key.split("/")[-1].split("-")[0] in words]
            costs[name] = {key: sum(each[key] for each in own) for key in _TIMES} | {"teacher_tokens": 0}
        costs["all"] = {key: sum(each[key] for each in self._stages.values()) for key in _TIMES} | {"teacher_tokens": 0}
        return costs

    def _teacher_tokens(self, arm: str) -> int:
        """Returns how many tokens the teacher reads or writes for an arm, those of padding too; of the first seed."""
        steps, length = self._settings.steps, task.KINDS[self._settings.kind].sequence_length
        batch = length * labels.config().recipe.data.sequences_per_batch
        folder = self._place(0, 0.0).folder
        if arm in ("labels", "labels_4"):
            return 0
        if arm == "text":
            rows = _read_rows(folder / "text-rows.jsonl")
            tokenizer = Tokenizer.from_pretrained(self._work / "tokenizer")
            prompts = (tokenizer.encode_chat(row["messages"]) for row in _read_rows(folder / "questions.jsonl"))
            return sum(row["num_tokens"] for row in rows) + sum(map(len, prompts))
        stored = json.loads((folder / "store" / "manifest.json").read_text(encoding="utf-8"))["totals"]["tokens"]
        own = {"on_policy": stored + (steps - steps // 2) * batch, "own": stored + steps * batch}
        return {"stored": stored, "stored_twice": stored, **own}.get(arm, steps * batch)


_TIMES = ("cpu_seconds", "seconds")
# Of the short kind.
_GROUPS = (("labels_4",), ("stored", "on_policy"), ("text",), ("reverse",), ("live",), ("shuffled",), ("labels",))
"""Arms that can run at the same time. The on-policy arm needs the store of the one before it."""


def _make_conversations(folder: Path) -> None:
    """Turns what the teacher wrote into rows that training reads."""
    answers = [row["response"] for row in _read_rows(folder / "text-rows.jsonl")]
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for question, answer in zip(_read_rows(folder / "questions.jsonl"), answers, strict=True):
            turns = [*question["messages"], {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
