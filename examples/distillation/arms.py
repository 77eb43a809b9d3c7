"""The arms of the experiment: which commands make each student from the same start.

All students begin from the same base, which knows the words and the sums. Those of a seed see the same questions, and
take the same number of steps at the same learning rate, unless an arm says otherwise. What learns from labels is
stopped at its best step by other conversations, or it would only tell how far it overfits; what is distilled takes its
last step.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.distillation import task

Command = list[Any]
_LINEAR = ["--optim.schedule", "linear"]
_FOLDER = Path("examples") / "distillation"
LABELS, DISTILL, ON_POLICY = (_FOLDER / name for name in ("labels.py", "distill.py", "on_policy.py"))

SHORT = {
    "labels": "labels",
    "labels_4": "labels, 4 times the steps",
    "text": "text of the teacher",
    "stored": "stored top k",
    "live": "live, forward KL",
    "reverse": "live, reverse KL",
    "on_policy": "on-policy from stored",
    "shuffled": "shuffled teacher",
}
LONG = {
    "stored": SHORT["stored"],
    "stored_twice": "stored top k, twice the steps",
    "own": "stored top k, then on-policy",
}
ARMS: Mapping[task.KindName, Mapping[str, str]] = {"short": SHORT, "long": LONG}
"""The arms of each kind of the task, and what they are called in the table."""
DISTILLED = ("stored", "live", "reverse", "on_policy")


@dataclass(frozen=True)
class Place:
    """Where everything of a seed lies, and how its students are trained."""

    work: Path
    seed: int
    steps: int
    rate: float
    kind: task.KindName = "short"
    """Of the task."""

    @property
    def folder(self) -> Path:
        """What belongs to this seed alone."""
        return self.work / f"seed-{self.seed}"

    @property
    def start(self) -> Path:
        """The checkpoint that all students begin from."""
        return self.work / "base" / "export"

    @property
    def teacher(self) -> Path:
        """The teacher's checkpoint."""
        return self.work / "teacher" / "export"

    def student(self, arm: str) -> Path:
        """Returns the checkpoint that an arm ends with."""
        return self.folder / arm / "export"

    def fine_tune(self, arm: str, *, data: Path, steps: int) -> Command:
        """Returns the command that trains on labels. Its student is the one of the best step by other conversations."""
        best = ["--data.eval-path", self.work / "dev.jsonl", "--evaluate-every", 25]
        best += ["--checkpoint.best-by", "eval_loss", "--export-best"]
        return ["train.sft", LABELS, *self._common(arm, self.start, data, steps), *best]

    def distill(self, arm: str, *more: Any, steps: int | None = None, teacher: Path | None = None) -> Command:
        """Returns the command that distils on the conversations of the seed."""
        common = self._common(arm, self.start, self.folder / "train.jsonl", steps or self.steps)
        return ["train.distill", DISTILL, "--teacher.path", teacher or self.teacher, *common, *more]

    def cold_start(self, arm: str, *, steps: int) -> Command:
        """Returns the command of the first half of a run, in which the rate falls to its half."""
        return self.distill(arm, *self.stored(), *_LINEAR, "--optim.final-fraction", 0.5, steps=steps)

    def on_policy(self, arm: str, *, start: Path, steps: int) -> Command:
        """Returns the command of what follows, with the student's own answers to the same questions."""
        half = dataclasses.replace(self, rate=self.rate / 2)
        common = half._common(arm, start, self.folder / "train.jsonl", steps)
        kind = task.KINDS[self.kind]
        limits = ["--rollouts.max-prompt-tokens", kind.max_prompt_tokens, "--rollouts.max-new-tokens"]
        lengths = [*limits, kind.max_new_tokens]
        return ["train.distill", ON_POLICY, "--teacher.path", self.teacher, *common, *_LINEAR, *lengths]

    def teach(self) -> Command:
        """Returns the command that stores the teacher's signal."""
        names = ["--model.path", self.start, "--data.path", self.folder / "train.jsonl", *length_of(self.kind)]
        return ["train.teach", DISTILL, "--teacher.path", self.teacher, *names, *self.stored()]

    def stored(self) -> Command:
        """Returns the options that name the store."""
        return ["--teacher.signal", "topk", "--teacher.store", self.folder / "store"]

    def write_text(self) -> Command:
        """Returns the command by which the teacher answers the questions of the seed."""
        files = ["--input", self.folder / "questions.jsonl", "--output", self.folder / "text-rows.jsonl"]
        how = [
            "--dtype",
            "float32",
            "--temperature",
            1,
            "--max-new-tokens",
            task.KINDS[self.kind].max_new_tokens,
            "--seed",
            self.seed,
        ]
        return ["qwen35_jax.cli", "generate", "--model", self.teacher, *files, *how]

    def _common(self, arm: str, model: Path, data: Path, steps: int) -> Command:
        names = ["--model.path", model, "--data.path", data, "--workdir", self.folder / arm]
        numbers = ["--optim.learning-rate", self.rate, "--steps", steps, "--data.seed", self.seed]
        return [*names, *numbers, "--seed", self.seed, *length_of(self.kind)]


def length_of(kind: task.KindName) -> Command:
    """Returns the option that sets the length of a packed sequence."""
    return ["--data.sequence-length", task.KINDS[kind].sequence_length]


def commands(place: Place, arm: str) -> Iterator[tuple[str, Command]]:
    """Yields the name and the command of every stage of an arm, in order."""
    half, data = place.steps // 2, place.folder / "train.jsonl"
    if arm == "labels":
        yield "train", place.fine_tune(arm, data=data, steps=place.steps)
    elif arm == "labels_4":
        yield "train", place.fine_tune(arm, data=data, steps=4 * place.steps)
    elif arm == "text":
        yield "write", place.write_text()
        # A poor teacher may write marks of the chat format, which no answer may hold.
        usable = ["--data.bad-rows", "drop", "--data.max-lost", 1.0]
        yield "train", [*place.fine_tune(arm, data=place.folder / "text.jsonl", steps=place.steps), *usable]
    elif arm == "stored":
        yield "teach", place.teach()
        yield "train", place.distill(arm, *place.stored())
    elif arm == "stored_twice":
        # The store is that of the stored arm, so this arm and the next come after it.
        yield "train", place.distill(arm, *place.stored(), steps=2 * place.steps)
    elif arm == "own":
        yield "train", place.on_policy(arm, start=place.student("stored"), steps=place.steps)
    elif arm == "live":
        yield "train", place.distill(arm)
    elif arm == "reverse":
        yield "train", place.distill(arm, "--divergence", "reverse_kl")
    elif arm == "shuffled":
        yield "train", place.distill(arm, teacher=place.work / "shuffled" / "export")
    else:
        # The store is that of the stored arm, so this arm comes after it.
        yield "cold start", place.cold_start("cold_start", steps=half)
        yield "train", place.on_policy(arm, start=place.student("cold_start"), steps=place.steps - half)


def measure(place: Place, *, questions: int) -> Command:
    """Returns the command that measures all students of a seed."""
    students = [place.student(arm) for arm in ARMS[place.kind]]
    names = ["--teacher", place.teacher, "--models", *students, "--out", place.folder / "figures.json"]
    what = ["--seed", place.seed, "--questions", questions, "--kind", place.kind]
    return ["examples.distillation.measure", *names, *what]
