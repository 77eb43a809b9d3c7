r"""GSM8K: grade-school word problems with one number as the answer (arXiv:2110.14168).

| protocol | prompt | accuracy | strict |
|---|---|---|---|
| official | the question | final number | after ``####`` only, as in the authors' script |
| card | the question, and the model card's request for ``\boxed{}`` | final number | - |
| lm-eval | ``Q: ... A: Let's think step by step.`` (gsm8k_cot_zeroshot) | flexible-extract | strict-match |

The final number is found and compared as `eval.scorers.exact_match` describes.
"""

import re

from eval.config import Protocol
from eval.scorers.exact_match import final_number
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.data import HubFile, Row
from eval.tasks.qa import row_id

CARD_REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."
# The patterns of the two reference scorers; the first group that took part is the answer.
_AUTHORS = re.compile(r"#### (-?[0-9.,]+)")
_LM_EVAL_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LM_EVAL_STRICT = re.compile(r"The answer is (-?[0-9.,]+).")
_LM_EVAL_STOP = "Q:"


def _document(row: Row, protocol: Protocol) -> Document:
    question, answer = row.get("question", str), row.get("answer", str)
    solution = _AUTHORS.search(answer)
    target = final_number(solution.group(0)) if solution else None
    if target is None:
        raise ValueError(f"{row.where}: answer={answer[-60:]!r} does not end in '#### NUMBER'.")
    prompts = {
        "official": question,
        "card": f"{question}\n\n{CARD_REQUEST}",
        "lm-eval": f"Q: {question}\nA: Let's think step by step.",
    }

    def score(response: str) -> Verdict:
        if protocol == "lm-eval":
            return _score_lm_eval(response, answer)
        prediction = final_number(response)
        checks = {"accuracy": [prediction == target]}
        if protocol == "official":
            marked = _AUTHORS.search(response)
            checks["strict"] = [marked is not None and _without_commas(marked.group(1)) == _without_commas(solution[1])]
        return Verdict(prediction is not None, prediction == target, checks, prediction)

    return Document(row_id(row), prompts[protocol], score)


def _score_lm_eval(response: str, answer: str) -> Verdict:
    """Judges a response as lm-evaluation-harness's gsm8k_cot_zeroshot does, its stop string included."""
    response = response.split(_LM_EVAL_STOP)[0]
    numbers = _LM_EVAL_FLEXIBLE.findall(response)
    flexible = "".join(numbers[-1]) if numbers else None
    strict = _LM_EVAL_STRICT.search(response)
    target = _lm_eval_form(answer)
    correct = flexible is not None and _lm_eval_form(flexible) == target
    checks = {"accuracy": [correct], "strict": [strict is not None and _lm_eval_form(strict.group(1)) == target]}
    return Verdict(flexible is not None, correct, checks, flexible)


def _lm_eval_form(text: str) -> str:
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.casefold()


def _without_commas(number: str) -> str:
    return number.strip().replace(",", "")


GSM8K = Task(
    name="gsm8k",
    splits=("test",),
    hub=HubFile("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "main/test-00000-of-00001.parquet"),
    lm_eval_max_new_tokens=256,
    document=_document,
)
