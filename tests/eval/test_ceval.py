"""C-Eval: the prompts, what its authors' patterns find, and both splits. All questions here are made up."""

import random
import re
import string

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from eval.samples import Reply, make_sample
from eval.summary import summarize
from eval.tasks import ceval, get_task
from eval.tasks.choices import CARD_REQUEST
from tests.eval.conftest import write_rows
from tests.eval.lm_eval_task import lm_eval_task, lm_eval_tasks, read_config
from tests.linear_time import assert_linear

OPTIONS = "A. 一\nB. 二\nC. 三\nD. 四"


def row(number=0, **changes):
    return {
        "id": number, "question": f"第{number}个问题是____", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "C",
        "explanation": "",
    } | changes  # fmt: skip


def load(tmp_path, subjects, protocol="official", split=None, *, name="val"):
    """Writes rows of each subject to its folder and returns the documents."""
    for subject, rows in subjects.items():
        write_rows(tmp_path / "ceval" / subject / f"{name}.jsonl", rows)
    return get_task("ceval").load(protocol, str(tmp_path), split=split).documents


def one(tmp_path, protocol="official", **changes):
    (document,) = load(tmp_path, {"logic": [row(**changes)]}, protocol)
    return document


def test_the_prompts_of_official_and_card(tmp_path):
    official = one(tmp_path)
    intro = "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。"
    prompt = f"{intro}\n\n第0个问题是____\n{OPTIONS}\n答案："
    assert official.messages == [
        {"role": "system", "content": f"你是一个中文人工智能助手，{intro}"},
        {"role": "user", "content": prompt},
    ]
    assert official.text == official.likelihood.context == prompt
    assert (official.id, official.group, official.target) == ("logic/0", "logic", "C")
    assert official.likelihood.gold == {2}
    card = one(tmp_path, "card")
    assert card.messages == [{"role": "user", "content": f"第0个问题是____\n\n{OPTIONS}\n\n{CARD_REQUEST}"}]


@pytest.mark.parametrize("subject", ["logic", "mao_zedong_thought", "physician"])
def test_the_context_of_lm_eval(tmp_path, subject):
    rows = [row(9, question=" 问题 \n")]
    dev = [row(number, answer="ABCD"[number % 4], question=f" 例{number}") for number in range(7)]
    write_rows(tmp_path / "ceval" / subject / "dev.jsonl", dev)
    write_rows(tmp_path / "ceval" / "law" / "dev.jsonl", [row(number) for number in range(5)])
    (document,) = load(tmp_path, {subject: rows}, "lm-eval")
    task = lm_eval_task(f"ceval/ceval-valid_{subject}.yaml", {"val": rows, "dev": dev})
    task.set_fewshot_seed(0)
    context = task.fewshot_context(rows[0], 5)
    assert document.text == document.likelihood.context == context
    requests = task.construct_requests(rows[0], context, metadata=("x", 0, 1))
    assert [request.args for request in requests[:4]] == [(context, choice) for choice in document.likelihood.choices]
    assert document.likelihood.gold == {task.doc_to_target(rows[0])}


def test_every_subject_is_described_as_lm_eval_does(tmp_path):
    folder = lm_eval_tasks() / "ceval"
    for subject in ceval.SUBJECTS:
        write_rows(tmp_path / "ceval" / subject / "dev.jsonl", [row(number) for number in range(5)])
    documents = load(tmp_path, {subject: [row()] for subject in ceval.SUBJECTS}, "lm-eval")
    assert len({document.group for document in documents}) == 52
    for document in documents:
        description = read_config(folder / f"ceval-valid_{document.group}.yaml")["description"]
        assert document.text.startswith(description + "第0个问题")


def test_examples_of_the_subject_are_needed(tmp_path):
    write_rows(tmp_path / "ceval" / "logic" / "dev.jsonl", [row(number) for number in range(4)])
    with pytest.raises(
        ValueError, match="subject='logic' has 4 solved examples in the dev split, but the prompt has 5"
    ):
        load(tmp_path, {"logic": [row()]}, "lm-eval")


@pytest.mark.parametrize(
    ("response", "letter", "reasoned"),
    [
        ("所以答案是C。", "C", "C"), ("答案是A。不对，答案是C。", "C", "C"), ("答案是 C 。", "C", "C"),
        ("答案是(C)。", "C", "C"),
        ("答案是c。", "C", "C"), ("答案是 **C**。", "C", "C"), ("答案为C。", "C", "C"), ("选项C是正确的。", "C", "C"),
        ("选项C是正确的。答案为B。", "B", "B"), ("答案是C", "C", None), ("C", "C", None), ("C. 三", "C", None),
        ("D", "D", None), ("答案：C", "C", None), ("答案: 选C", "C", None), ("答案应为C，因为", "C", None),
        ("正确的一项是 C", "C", None), ("选C", "C", None), ("选项C", "C", None), ("答案选项C", "C", None),
        ("答案应该是：C", "C", None), ("因此，正确答案是：选项C", "C", None), ("因此答案是选项 C 吗", "C", None),
        ("答案：A\n答案：C", "C", None), ("我选C", None, None), ("**C**", None, None), ("", None, None),
        ("  ", None, None),
        ("不知道", None, None), ("Ｃ", None, None), ("答案是。", None, None), ("答案是正确的。", None, None),
        ("答案是正确的。答案：C", "C", None), ("答案是CD。", "C", None), ("答案是\nC。", "C", None),
        ("答案是E。", None, None),
        ("A是错的，答案是C。", "C", "C"), ("Actually, C", "A", None),
    ],
)  # fmt: skip
def test_what_the_authors_read(tmp_path, response, letter, reasoned):
    verdict = one(tmp_path).score(response)
    assert (verdict.prediction, verdict.parsed) == (letter, letter is not None)
    assert verdict.metrics == {"accuracy": [letter == "C"], "accuracy_cot": [reasoned == "C"]}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("答案：C", "C"), ("答案是 C。", "C"), ("答案：Ｃ", "C"), ("故选C", "C"), ("**C**", "C"), ("（C）", "C"),
        ("C.", "C"),
        ("C)", "C"), ("选项C", "C"), ('"answer": "C"', "C"), ('{"answer": "C"}', "C"), (r"\boxed{C}", "C"), ("C", "C"),
        (r"$\boxed{\text{C}}$", "C"), ("The answer is (C).", "C"), ("Final answer: **C**", "C"), ("Option C", "C"),
        ("答案：A。等等，不对，应该是C", "C"), ("Answer: A. Wait, no: C", "C"), ("A question of taste.", None),
        ("I do not know.", None), ("", None), ("答案：E", None), ("不知道", None), ("## 答案\nC", "C"),
    ],
)  # fmt: skip
def test_what_the_card_reads(tmp_path, response, letter):
    assert one(tmp_path, "card").score(response).prediction == letter


def authors_letter(response):
    """What the regular expressions of chatgpt.py find in a response that reasons."""
    found = []
    for pattern in (r"答案是(.+?)。", r"答案为(.+?)。", r"选项(.+?)是正确的。"):
        found = found or re.findall(pattern, response)
    if not found:
        return None
    plain = "".join(character for character in found[-1].lower() if character not in string.punctuation)
    plain = " ".join(plain.split())
    return plain.upper() if plain in tuple("abcd") else None


def test_reasoned_answers_as_the_authors_patterns_find_them():
    rng = random.Random(0)
    pieces = [
        "答案是",
        "答案为",
        "选项",
        "是正确的。",
        "。",
        "\n",
        "C",
        "b",
        "(A)",
        " ",
        "。。",
        "是",
        "**",
        "D.",
        "\r",
    ]
    for _ in range(20_000):
        response = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        assert ceval.reasoned_letter(response) == authors_letter(response), repr(response)


@pytest.mark.parametrize(
    "piece",
    ["答案是", "答案是。", "选项", "选项是正确的", "答案是\n", "。", "答案 ", "A ", "答案：选项", "答案是C。", "选"],
)
def test_time_is_linear(tmp_path, piece):
    assert_linear(one(tmp_path).score, piece, end="完")


@pytest.mark.parametrize("answer", ["", None])
def test_test_rows_without_an_answer(tmp_path, answer):
    with pytest.raises(
        ValueError, match=r"logic/test\.jsonl:1: answer=.* tells no letter.*July 2025.*give --split val"
    ):
        load(tmp_path, {"logic": [row(answer=answer)]}, split="test", name="test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, r"val\.jsonl:1: answer='E' is none of A, B, C, D"),
        ({"answer": "AB"}, "answer='AB' is none of"),
        ({"B": None}, "B=None is a NoneType, expected str"),
        ({"question": 1}, "question=1 is an int"),
        ({"id": True}, "id=True is a bool"),
    ],
)
def test_wrong_rows(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"logic": [row(**changes)]})


def test_an_unknown_subject(tmp_path):
    with pytest.raises(ValueError, match="subject='logics' is none of C-Eval's; they are computer_network"):
        load(tmp_path, {"logics": [row()]})


def test_one_file_has_the_subject_in_its_rows(tmp_path):
    rows = [row(subject="law"), row(subject="logic")]
    write_rows(tmp_path / "ceval" / "val.jsonl", rows)
    documents = get_task("ceval").load("card", str(tmp_path)).documents
    assert [document.id for document in documents] == ["law/0", "logic/0"]
    write_rows(tmp_path / "ceval" / "val.jsonl", [row()])
    with pytest.raises(ValueError, match="no field 'subject'"):
        get_task("ceval").load("card", str(tmp_path))


def test_files_of_each_subject_are_fetched_from_the_hub(tmp_path, monkeypatch):
    def download(repo, filename, *, repo_type, revision):
        path = tmp_path / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(number) for number in range(5)]), path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    documents = get_task("ceval").load("lm-eval", None, split="test").documents
    assert [document.id for document in documents][:6] == [f"computer_network/{n}" for n in range(5)] + [
        "operating_system/0"
    ]
    assert len(documents) == 52 * 5
    files = {path.name for path in (tmp_path / "logic").iterdir()}
    assert files == {"test-00000-of-00001.parquet", "dev-00000-of-00001.parquet"}


def test_val_is_scored_by_default_and_test_on_demand(tmp_path):
    load(tmp_path, {"logic": [row(7)]}, name="test", split="test")
    assert [document.id for document in load(tmp_path, {"logic": [row(1)]})] == ["logic/1"]
    assert [document.id for document in load(tmp_path, {}, split="test")] == ["logic/7"]


def test_the_mean_over_subjects_stands_beside_that_over_questions(tmp_path):
    """Right is all of the one question of law, and one of the three of logic."""
    documents = load(tmp_path, {"law": [row()], "logic": [row(number) for number in range(3)]}, "card")
    task = get_task("ceval")
    answers = {"law/0": "C", "logic/0": "C", "logic/1": "A", "logic/2": "B"}
    samples = [make_sample(each, Reply(None, answers[each.id], "stop"), task.protocol("card")) for each in documents]
    summary = summarize(samples, headline=task.headline, macro=task.macro)
    assert summary["metrics"]["accuracy"]["value"] == 0.5
    assert summary["macro"]["value"] == pytest.approx((1 + 1 / 3) / 2)
