"""A made-up run in thinking mode: documents with subjects, samples of every outcome, and the results to them.

python -m tests.eval.report.fake_run OUT [DOCUMENTS]
"""

import random
import sys
from pathlib import Path

from eval.protocols import Protocol
from eval.report import write_report
from eval.samples import Reply, SampleFile, make_sample, samples_path
from eval.stats import INTERVALS
from eval.summary import summarize
from eval.tasks.base import Document, Verdict, user_turn

SUBJECTS = {
    "biology": 0.83, "business": 0.71, "chemistry": 0.69, "computer science": 0.68, "economics": 0.72,
    "engineering": 0.47, "health": 0.6, "history": 0.53, "law": 0.36, "mathematics": 0.79, "other": 0.55,
    "philosophy": 0.56, "physics": 0.72, "psychology": 0.69,
}  # fmt: skip
LIMIT = 32_768
SAMPLING = {
    "temperature": 1.0, "top_k": 20, "top_p": 0.95, "presence_penalty": 1.5, "thinking_budget": None,
    "budget_close": "sentence",
}  # fmt: skip
PROTOCOL = Protocol("arXiv:2406.01574, the authors' repository")


def document(number, subject, target):
    options = "\n".join(f"{letter}. the {place}th possibility" for place, letter in enumerate("ABCDEFGHIJ", start=1))
    question = f"Question {number} about {subject}: which follows?\n{options}\nShow your choice in \\boxed{{}}."

    def score(response):
        found = response.rpartition("answer is ")[2].strip(" .") if "answer is " in response else None
        return Verdict(found == target, {"accuracy": [found == target]}, found, parsed=found is not None)

    return Document(number, user_turn(question), score, group=subject, target=target)


def reply(draw, each, ability, scale):
    """Returns what a model might write; ``scale`` shrinks the numbers of stored tokens, not their distribution."""
    length = int(min(LIMIT, draw.lognormvariate(7.6, 1.1)) * scale)
    thinking = " ".join(["Let me think about the possibilities one by one."] * (length // 20 + 1))
    ids = [0] * length
    fate = draw.random()
    if length >= int(LIMIT * scale) or fate < 0.01:
        reason = "length" if fate < 0.6 else "loop"
        return Reply(thinking, "", reason, [1] * 120, ids, [])
    right = draw.random() < ability * (1.1 if length < 2000 * scale else 0.93)
    letter = each.target if right else draw.choice([letter for letter in "ABCDEFGHIJ" if letter != each.target])
    response = f"The second possibility follows from the first.\n\nThe answer is {letter}."
    if fate > 0.985:
        response = "" if fate > 0.99 else "I cannot choose among these."
    reason = "error" if fate > 0.998 else "stop"
    return Reply(thinking, response, reason, [1] * 120, ids, [max(0, length - 30)], seed=draw.getrandbits(50))


def write_samples(out, task, num_documents, scale):
    """Writes a task's samples and returns its documents and summary."""
    draw = random.Random(task)
    documents, file = [], SampleFile(samples_path(out, task))
    file.path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(num_documents):
        subject = draw.choice(list(SUBJECTS))
        each = document(number, subject, draw.choice("ABCDEFGHIJ"))
        documents.append(each)
        file.append(make_sample(each, reply(draw, each, SUBJECTS[subject], scale), PROTOCOL))
    return documents, summary_of(list(file.finished.values()), scale)


def summary_of(samples, scale):
    asked = {
        "protocol": "card", "source": PROTOCOL.source, "data": "TIGER-Lab/MMLU-Pro@b189ec7", "data_sha256": "9f" * 32,
        "sampling": SAMPLING, "max_new_tokens": LIMIT, "cut_is_wrong": True,
    }  # fmt: skip
    summary = asked | summarize(
        samples, headline="accuracy", macro=True, max_new_tokens=int(LIMIT * scale), thinking=True
    )
    metric = summary["metrics"]["accuracy"]
    card = {"published": 0.665, "difference": metric["value"] - 0.665, "verdict": "missed"}
    return summary | {"card": card | {"note": "The card does not say its prompt; this is protocol card."}}


def write_page(out, results, documents=None):
    """Writes the report of the samples that a directory holds."""
    files = {task: SampleFile(samples_path(out, task)) for task in results["tasks"]}
    write_report(out, results, files, documents or {})


def write_run(out, tasks=("mmlu_pro",), num_documents=300, scale=0.02):
    """Writes a whole evaluation directory and returns its results and documents."""
    results = {
        "model": "Qwen/Qwen3.5-2B", "adapter": None, "mode": "thinking", "protocol": "card", "style": "chat",
        "repeats": 1, "seed": 0, "thinking_budget": None, "labels": [], "intervals": INTERVALS, "tasks": {},
        "seconds": {"total": 1.0},
    }  # fmt: skip
    documents = {}
    for task in tasks:
        documents[task], results["tasks"][task] = write_samples(out, task, num_documents, scale)
    write_page(out, results, documents)
    return results, documents


if __name__ == "__main__":
    write_run(Path(sys.argv[1]), ("mmlu_pro", "supergpqa"), int(sys.argv[2]) if sys.argv[2:] else 3000, scale=1.0)
