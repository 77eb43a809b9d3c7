"""Tasks as lm_eval ships them, over rows of a test's own, and an engine that answers them from a table."""

import functools
import hashlib

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from qwen35_jax.inference.transcript import Transcript
from tests.eval.conftest import FakeEngine, write_rows

ANSWERS = [
    "So 9 + 9 = 18.\nThe answer is 18.",
    "The answer is 17. Question: is it 18?",
    "It is twice nine.\n#### 18",
    "I think that the answer is (C).",
    "Surely the answer is A",
    "The answer is (B).",
    "The answer is D. Question: why not? The answer is (C).",
    "It costs $18",
    "I write no comma and no digit",
    '"Two words"',
    "# A title\n\n* one\n* two\n\nP.S. The answer is 1,800.",
    "ALL OF IT IS IN CAPITALS: 18",
    "",
]


class TableEngine(FakeEngine):
    """Answers each prompt with one of some texts, as the prompt's hash says; stop texts and limits hold."""

    def __init__(self, tokenizer, *, thinks=False):
        super().__init__(answers=None)
        self.tokenizer, self.thinks = tokenizer, thinks

    def answer_to(self, prompt):
        first, second, third = hashlib.sha256(bytes(str(prompt), "utf-8")).digest()[:3]
        answer = f"{ANSWERS[first % len(ANSWERS)]}\n{ANSWERS[second % len(ANSWERS)]}"
        thought = "Question: 5?\n</think>\n\n" if third % 3 else "Question: the answer is 18, or (C)"
        return f"{thought}{answer}" if self.thinks else answer

    def generate(self, prompts, *, sampling, max_new_tokens, seed=0, on_finish=None):
        completions = []
        for place, prompt in enumerate(prompts):
            transcript = Transcript(self.tokenizer, prompt, sampling[place], stream=False)
            tokens = [*self.tokenizer.encode(self.answer_to(prompt)), self.tokenizer.eos_token_ids[0]]
            reason = "length"
            for token in tokens[: max_new_tokens[place]]:
                reason = "stop" if token == tokens[-1] else reason
                if found := transcript.push(token, None):
                    reason = found
                    break
            completions.append(transcript.finish(reason, seed=seed[place], closed_by_budget=False))
            on_finish(place, completions[-1])
        return completions


@functools.cache
def manager():
    """Returns lm_eval's index of tasks, which takes seconds to build."""
    return TaskManager()


def stock_task(name, **splits):
    """Returns the configuration of a task as lm_eval ships it, with rows of files in the place of the hub's.

    Args:
      splits: the file of each; the task's other splits are left out.
    """
    config = load_yaml(manager().task_index[name].yaml_path)
    kept = {key: value for key, value in config.items() if not key.endswith("_split") or value in splits}
    for key in ("tag", "dataset_name"):
        kept.pop(key, None)
    files = {split: str(path) for split, path in splits.items()}
    first = next(iter(splits.values()))
    return kept | {
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(first.parent / "cache")},
    }


LAMBADA = [
    {"text": "Some sentences end with a word that one can guess from the start: they end with a word"},
    {"text": "the cat sat on the mat, and the dog lay on the floor near the door"},
    {"text": "one two three four five six seven eight"},
]
ARC = [
    {
        "question": "What is wet?",
        "choices": {"text": ["a stone", "water", "sand of a desert"], "label": ["A", "B", "C"]},
    },
    {"question": "How many legs?", "choices": {"text": ["2", "4", "no legs at all"], "label": ["1", "2", "3"]}},
]


def likelihood_tasks(folder):
    """Returns two stock tasks over rows of our own: one with a greedy check, and one with several choices."""
    rows = {"lambada_openai": LAMBADA, "arc_easy": [row | {"answerKey": row["choices"]["label"][1]} for row in ARC]}
    return [stock_task(name, test=write_rows(folder / f"{name}.jsonl", each)) for name, each in rows.items()]


def requests_of(kind, arguments):
    return [Instance(kind, {}, each, 0, ("task", number, 1)) for number, each in enumerate(arguments)]
