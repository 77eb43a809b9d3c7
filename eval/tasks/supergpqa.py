"""SuperGPQA: graduate questions of 285 subfields with four to ten options (arXiv:2502.14739).

| protocol | prompt | the letter is |
|---|---|---|
| card | question, options, and the model card's request | the last one that the response states (eval.scorers.choice) |
| official | the authors' zero-shot prompt | what their patterns find, or the option whose text they find |

A base model continues the authors' five-shot prompt. It tends to go on with a question of its own, before which its
answer is looked for first. lm-evaluation-harness does not have the task.

Data: m-a-p/SuperGPQA on the hub, 26,529 questions in the one split ``train``, ODC-BY.
"""

from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import LETTERS, final_letter
from eval.scorers.option_patterns import stated_letter
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.choices import card_prompt, letter_likelihood, letter_verdict, lettered
from eval.tasks.data import Data, HubFiles, Row

# Source of the prompts: config/prompt/zero-shot.yaml and five-shot.yaml of github.com/SuperGPQA/SuperGPQA.
INSTRUCTION = (
    "Answer the following multiple choice question. There is only one correct answer. The last line of your response "
    "should be in the format 'Answer: $LETTER' (without quotes), where LETTER is one of A, B, C, D, E, F, G, H, I, or "
    "J.\n\n"
)
SHOTS = (
    "Question: \n"
    "A refracting telescope consists of two converging lenses separated by 100 cm. The eye-piece lens has a focal "
    "length of 20 cm. The angular magnification of the telescope is\n"
    "A) 10\nB) 40\nC) 6\nD) 25\nE) 15\nF) 50\nG) 30\nH) 4\nI) 5\nJ) 20\n\n"
    "Answer: Let's think step by step. In a refracting telescope, if both lenses are converging, the focus of both "
    "lenses must be between the two lenses, and thus the focal lengths of the two lenses must add up to their "
    "separation. Since the focal length of one lens is 20 cm, the focal length of the other must be 80 cm. The "
    "magnification is the ratio of these two focal lengths, or 4.\n"
    "Answer: H.\n\n"
    "Question: \n"
    "Say the pupil of your eye has a diameter of 5 mm and you have a telescope with an aperture of 50 cm. How much "
    "more light can the telescope gather than your eye? \n"
    "A) 1000 times more\nB) 50 times more\nC) 5000 times more\nD) 500 times more\nE) 10000 times more\n"
    "F) 20000 times more\nG) 2000 times more\nH) 100 times more\nI) 10 times more\nJ) N/A\n\n"
    "Answer: Let's think step by step. The amount of light a telescope can gather compared to the human eye is "
    "proportional to the area of its apertures. The area of a circle is given by the formula $A = \\pi "
    "\\left(\\frac{D}{2}\\right)^2$, where $D$ is the diameter. Therefore, the relative light-gathering power is "
    "calculated as:\n"
    "\\[\n"
    "\\frac{\\left(\\frac{50 \\text{ cm}}{2}\\right)^2}{\\left(\\frac{5 \\text{ mm}}{2}\\right)^2} = "
    "\\frac{\\left(\\frac{50 \\text{ cm}}{0.1 \\text{ cm}}\\right)^2}{\\left(\\frac{5 \\text{ mm}}{0.1 \\text{ "
    "cm}}\\right)^2} = \\frac{500^2}{5^2} = 10000.\n"
    "\\]\n"
    "Answer: E.\n\n"
    "Question: \n"
    "Where do most short-period comets come from and how do we know? \n"
    "A) The Kuiper belt; short period comets tend to be in the plane of the solar system like the Kuiper belt. \n"
    "B) The asteroid belt; short period comets tend to come from random directions indicating a spherical "
    "distribution of comets called the asteroid belt. \n"
    "C) The asteroid belt; short period comets tend to be in the plane of the solar system just like the asteroid "
    "belt. \n"
    "D) The Oort cloud; short period comets have orbital periods similar to asteroids like Vesta and are found in the "
    "plane of the solar system just like the Oort cloud. \n"
    "E) The Oort Cloud; short period comets tend to come from random directions indicating a spherical distribution "
    "of comets called the Oort Cloud. \n"
    "F) The Oort cloud; short period comets tend to be in the plane of the solar system just like the Oort cloud. \n"
    "G) The asteroid belt; short period comets have orbital periods similar to asteroids like Vesta and are found in "
    "the plane of the solar system just like the asteroid belt. \n"
    "Answer: Let's think step by step. Most short-period comets originate from the Kuiper belt. This is deduced from "
    "the observation that these comets tend to follow orbits that lie in the plane of the solar system, similar to "
    "the distribution of objects in the Kuiper belt itself. Thus, the alignment of these cometary orbits with the "
    "ecliptic plane points to their Kuiper belt origin.\n"
    "Answer: A.\n\n"
    "Question: \n"
    "Colors in a soap bubble result from light \n"
    "A) dispersion \nB) deflection \nC) refraction \nD) reflection \nE) interference \n"
    "F) converted to a different frequency \nG) polarization \nH) absorption \nI) diffraction \nJ) transmission \n\n"
    "Answer: Let's think step by step. The colorful patterns observed in a soap bubble are caused by the phenomenon "
    "of light interference. This occurs when light waves bounce between the two surfaces of the soap film, combining "
    "constructively or destructively based on their phase differences and the varying thickness of the film. These "
    "interactions result in vibrant color patterns due to variations in the intensity of different wavelengths of "
    "light.\n"
    "Answer: E.\n\n"
    "Question: \n"
    "A microwave oven is connected to an outlet, 120 V, and draws a current of 2 amps. At what rate is energy being "
    "used by the microwave oven? \n"
    "A) 240 W\nB) 120 W\nC) 10 W\nD) 480 W\nE) 360 W\nF) 200 W\nG) 30 W\nH) 150 W\nI) 60 W\nJ) 300 W\n\n"
    "Answer: Let's think step by step. The rate of energy usage, known as power, in an electrical circuit is "
    "calculated by the product of voltage and current. For a microwave oven connected to a 120 V outlet and drawing a "
    "current of 2 amps, the power consumption can be calculated as follows:\n"
    "\\[\n"
    "\\text{Power} = \\text{Voltage} \\times \\text{Current} = 120 \\, \\text{V} \\times 2 \\, \\text{A} = 240 \\, "
    "\\text{W}.\n"
    "\\]\n"
    "Therefore, the microwave oven uses energy at a rate of 240 watts.\n"
    "Answer: A.\n\n"
)
_MOST_OPTIONS = 10
_NEXT_QUESTION = "\n\nQuestion:"


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, options, target = row.get("question", str), _options(row), row.get("answer_letter", str)
    if len(target) != 1 or target not in LETTERS[: len(options)]:
        raise ValueError(f"{row.where}: answer_letter={target!r} is the letter of none of the {len(options)} options.")
    asked = f"{question}\n{lettered(options, ')')}"
    zero_shot = f"{INSTRUCTION}{asked}\n"

    def letter_of(response: str) -> str | None:
        return final_letter(response, len(options)) if protocol == "card" else stated_letter(response, options)

    def score(response: str) -> Verdict:
        before, next_question, _ = response.partition(_NEXT_QUESTION)
        letter = letter_of(before)
        return letter_verdict(letter_of(response) if letter is None and next_question else letter, target)

    return Document(
        row.get("uuid", str),
        user_turn(card_prompt(question, options) if protocol == "card" else zero_shot),
        score,
        group=row.get("discipline", str),
        text=f"{INSTRUCTION}{SHOTS}Question: \n{asked}\n\nAnswer: Let's think step by step. \n",
        likelihood=letter_likelihood(f"{zero_shot}Answer:", len(options), {LETTERS.index(target)}),
        target=target,
    )


def _options(row: Row) -> list[str]:
    options = row.get("options", list)
    if not 2 <= len(options) <= _MOST_OPTIONS or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{row.where}: options={options!r} must be 2 to {_MOST_OPTIONS} texts.")
    return options


TASK = Task(
    name="supergpqa",
    data=Data(
        splits=("train",),
        hub=HubFiles("m-a-p/SuperGPQA", "4430d4458112c7d4497fdcf94d7cc223313d6acf", "SuperGPQA-all.jsonl"),
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices", max_text_tokens=4096),
        "official": Protocol(
            "https://github.com/SuperGPQA/SuperGPQA", {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy",
            stop=("\n\nQuestion: \n",), cut_is_wrong=False, max_text_tokens=4096,
        ),
    },
    document=_document,
)  # fmt: skip
