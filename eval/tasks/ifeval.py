"""IFEval: prompts with instructions whose following a program can verify (arXiv:2311.07911).

The benchmark gives prompts and verifiers; all protocols ask and score alike and differ in sampling only.
"""

from eval.config import Protocol
from eval.scorers import ifeval as scorer
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.data import HubFile, Row


def _document(row: Row, protocol: Protocol) -> Document:
    prompt, names, arguments = row.get("prompt", str), row.get("instruction_id_list", list), row.get("kwargs", list)
    key = row.get("key", int)
    if not names or len(names) != len(arguments):
        raise ValueError(
            f"{row.where}: {len(names)} instructions with {len(arguments)} kwargs; each instruction needs its own."
        )
    try:
        instructions = scorer.build_instructions(key, names, arguments)
    except ValueError as err:
        raise ValueError(f"{row.where}: {err}") from err

    def score(response: str) -> Verdict:
        strict, loose = scorer.follow_strict(instructions, response), scorer.follow_loose(instructions, response)
        checks = {
            "prompt_strict": [all(strict)],
            "instruction_strict": strict,
            "prompt_loose": [all(loose)],
            "instruction_loose": loose,
        }
        return Verdict(answered=bool(response.strip()), correct=all(strict), checks=checks)

    return Document(key, prompt, score)


IFEVAL = Task(
    name="ifeval",
    splits=("test", "train"),
    hub=HubFile("google/IFEval", "966cd89545d6b6acfd7638bc708b98261ca58e84", "ifeval_input_data.jsonl"),
    lm_eval_max_new_tokens=1280,
    document=_document,
    prepare=scorer.prepare,
)
