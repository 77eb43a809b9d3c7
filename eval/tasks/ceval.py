"""C-Eval: Chinese exams in 52 subjects, four choices each (arXiv:2305.08322).

| protocol | prompt | the letter is |
|---|---|---|
| card | question, options, and the model card's request | the last one that the response states (eval.scorers.choice) |
| official | the authors' zero-shot prompt, in Chinese | what their patterns find |
| lm-eval | the five-shot context of ceval-valid | the last one that the response states |

The authors have patterns for responses that reason ("答案是C。", the last one) and for short ones, and take one kind or
the other by how they asked. Here, where no examples show a form, those for reasoning come first, and the others where
they find no letter. ``accuracy_cot`` counts the first kind alone.

``ceval-valid`` of lm-evaluation-harness compares log-likelihoods, with as many examples as are asked for; five, the
first of the subject, are the custom for base models. It has no form that is generated.

Split ``val`` (1,346 questions) is scored by default; ``--split test`` takes the other 12,342, whose answers the authors
published in July 2025. Which of them the model card means is not known. ``accuracy`` is the mean over questions; the
leaderboards give the mean over subjects, which stands beside it (``macro``).

Data: ceval/ceval-exam on the hub, CC-BY-NC-SA-4.0. It must not be redistributed with this code.
"""

import re
import string
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import LETTERS, final_letter
from eval.tasks.base import Document, Message, Task, Verdict, user_turn
from eval.tasks.choices import card_prompt, letter_likelihood, letter_verdict, lettered, solved_examples
from eval.tasks.data import Data, HubFiles, Row

# Source: subject_mapping.json of github.com/hkust-nlp/ceval.
SUBJECTS = {
    "computer_network": "计算机网络",
    "operating_system": "操作系统",
    "computer_architecture": "计算机组成",
    "college_programming": "大学编程",
    "college_physics": "大学物理",
    "college_chemistry": "大学化学",
    "advanced_mathematics": "高等数学",
    "probability_and_statistics": "概率统计",
    "discrete_mathematics": "离散数学",
    "electrical_engineer": "注册电气工程师",
    "metrology_engineer": "注册计量师",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理",
    "high_school_chemistry": "高中化学",
    "high_school_biology": "高中生物",
    "middle_school_mathematics": "初中数学",
    "middle_school_biology": "初中生物",
    "middle_school_physics": "初中物理",
    "middle_school_chemistry": "初中化学",
    "veterinary_medicine": "兽医学",
    "college_economics": "大学经济学",
    "business_administration": "工商管理",
    "marxism": "马克思主义基本原理",
    "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
    "education_science": "教育学",
    "teacher_qualification": "教师资格",
    "high_school_politics": "高中政治",
    "high_school_geography": "高中地理",
    "middle_school_politics": "初中政治",
    "middle_school_geography": "初中地理",
    "modern_chinese_history": "近代史纲要",
    "ideological_and_moral_cultivation": "思想道德修养与法律基础",
    "logic": "逻辑学",
    "law": "法学",
    "chinese_language_and_literature": "中国语言文学",
    "art_studies": "艺术学",
    "professional_tour_guide": "导游资格",
    "legal_professional": "法律职业资格",
    "high_school_chinese": "高中语文",
    "high_school_history": "高中历史",
    "middle_school_history": "初中历史",
    "civil_servant": "公务员",
    "sports_science": "体育学",
    "plant_protection": "植物保护",
    "basic_medicine": "基础医学",
    "clinical_medicine": "临床医学",
    "urban_and_rural_planner": "注册城乡规划师",
    "accountant": "注册会计师",
    "fire_engineer": "注册消防工程师",
    "environmental_impact_assessment_engineer": "环境影响评价工程师",
    "tax_accountant": "税务师",
    "physician": "医师资格",
}

_CHOICES = LETTERS[:4]
_NUM_SHOTS = 5
_ANSWER = "答案："

# What the authors' evaluator looks for: the text between two marks, and a letter after one.
_REASONED = (("答案是", "。"), ("答案为", "。"), ("选项", "是正确的。"))
_SHORT = tuple(
    re.compile(rf"{mark}([A-D])")
    for mark in (
        "^选", "^选项", r"答案是\s?选?项?\s?", r"答案为\s?选?项?\s?", r"答案应为\s?选?项?\s?", r"答案选\s?选?项?\s?",
        r"答案是:\s?选?项?\s?", r"答案应该是:\s?选?项?\s?", r"正确的一项是\s?", r"答案为:\s?选?项?\s?",
        r"答案应为:\s?选?项?\s?", r"答案:\s?选?项?\s?", r"答案是：\s?选?项?\s?", r"答案应该是：\s?选?项?\s?",
        r"答案为：\s?选?项?\s?", r"答案应为：\s?选?项?\s?", r"答案：\s?选?项?\s?",
    )
)  # fmt: skip
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def reasoned_letter(response: str) -> str | None:
    """Returns the letter that the authors read from a response that reasons, or None.

    Source: code/evaluator_series/evaluators/chatgpt.py of github.com/hkust-nlp/ceval.
    """
    for opening, closing in _REASONED:
        stated = _last_between(response, opening, closing)
        if stated is not None:
            letter = " ".join(stated.translate(_PUNCTUATION).split()).upper()
            return letter if len(letter) == 1 and letter in _CHOICES else None
    return None


def short_letter(response: str) -> str | None:
    """Returns the letter that the authors read from a response to a prompt without examples, or None."""
    response = response.strip()
    if response and response[0] in _CHOICES:
        return response[0]
    for pattern in _SHORT:
        letters = pattern.findall(response)
        if letters:
            return letters[-1]
    return None


def _last_between(text: str, opening: str, closing: str) -> str | None:
    """Returns the last text, of one character or more on one line, between two marks, as ``re.findall`` finds them."""
    last, place, end, line_end = None, 0, -1, -1
    while (start := text.find(opening, place)) >= 0:
        begin = start + len(opening)
        if end < begin + 1:
            end = text.find(closing, begin + 1)
            if end < 0:
                break
        if line_end < begin:
            line_end = text.find("\n", begin)
            line_end = len(text) if line_end < 0 else line_end
        if end < line_end:
            last, place = text[begin:end], end + len(closing)
        else:
            place = start + 1
    return last


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    subject, target = _subject(row), _answer(row)
    intro = f"以下是中国关于{SUBJECTS[subject]}考试的单项选择题，请选出其中的正确答案。"
    text = f"{intro}\n\n{_question(row)}"
    system = {"role": "system", "content": f"你是一个中文人工智能助手，{intro}"}
    messages: Sequence[Message] = [system, *user_turn(text)]
    if protocol == "card":
        messages = user_turn(card_prompt(row.get("question", str), [row.get(letter, str) for letter in _CHOICES]))
    elif protocol == "lm-eval":
        text = _lm_eval_context(row, subject, examples)
        messages = user_turn(text)

    def score(response: str) -> Verdict:
        if protocol != "official":
            return letter_verdict(final_letter(response, len(_CHOICES)), target)
        reasoned = reasoned_letter(response)
        letter = short_letter(response) if reasoned is None else reasoned
        return letter_verdict(letter, target, accuracy_cot=[reasoned == target])

    return Document(
        f"{subject}/{row.own_id()}", messages, score, group=subject, text=text,
        likelihood=letter_likelihood(text, len(_CHOICES), {_CHOICES.index(target)}), target=target,
    )  # fmt: skip


def _subject(row: Row) -> str:
    subject = row.get("subject", str)
    if subject not in SUBJECTS:
        raise ValueError(f"{row.where}: subject={subject!r} is none of C-Eval's; they are {', '.join(SUBJECTS)}.")
    return subject


def _answer(row: Row) -> str:
    answer = row.get("answer", str, type(None))
    if not answer:
        raise ValueError(
            f"{row.where}: answer={answer!r} tells no letter. Copies of C-Eval from before July 2025 lack the answers "
            "of split test; take the data again, or give --split val."
        )
    if answer not in _CHOICES or len(answer) != 1:
        raise ValueError(f"{row.where}: answer={answer!r} is none of {', '.join(_CHOICES)}.")
    return answer


def _question(row: Row, *, strip: bool = False) -> str:
    question = row.get("question", str)
    options = lettered([row.get(letter, str) for letter in _CHOICES])
    return f"{question.strip() if strip else question}\n{options}\n{_ANSWER}"


def _lm_eval_context(row: Row, subject: str, examples: Sequence[Row]) -> str:
    own = solved_examples(row, examples, "subject", _NUM_SHOTS, split="dev")
    description = f"以下是中国关于{SUBJECTS[subject]}的单项选择题，请选出其中的正确答案。\n\n"
    shots = "".join(f"{_question(example, strip=True)} {_answer(example)}\n\n" for example in own)
    return f"{description}{shots}{_question(row, strip=True)}"


TASK = Task(
    name="ceval",
    data=Data(
        splits=("val", "test"),
        hub=HubFiles(
            "ceval/ceval-exam", "617524a00b307ff6f9933702f724131fe12ca7ce", "{part}/{split}-00000-of-00001.parquet"
        ),
        parts=tuple(SUBJECTS),
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices", max_text_tokens=5),
        "official": Protocol(
            "https://github.com/hkust-nlp/ceval code/evaluator_series", {"thinking": 32_768, "non_thinking": 4_096},
            sampling="greedy", cut_is_wrong=False, max_text_tokens=5,
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4 ceval-valid, --num_fewshot 5", {"thinking": 256, "non_thinking": 256}, sampling="greedy",
            shots=_NUM_SHOTS, cut_is_wrong=False, max_text_tokens=5,
        ),
    },
    document=_document,
    shots_split="dev",
    macro=True,
)  # fmt: skip
