"""MMLU-Redux: which labels count in which score, the prompts, and every row that its authors annotated."""

import csv
import io
import json
from collections import Counter

import huggingface_hub
import pyarrow
import pyarrow.ipc
import pytest

from eval.likelihood import choose
from eval.samples import Reply, make_sample
from eval.summary import summarize
from eval.tasks import get_task, mmlu_redux
from eval.tasks.choices import CARD_REQUEST
from tests.conftest import shared_dir
from tests.eval.conftest import write_rows
from tests.eval.lm_eval_task import lm_eval_task

CHOICES = ["iron", "gold", "tin", "lead"]


def row(error_type="ok", correct_answer=None, **changes):
    return {
        "question": "Which is dense?", "choices": CHOICES, "answer": 1, "error_type": error_type, "source": None,
        "correct_answer": correct_answer, "potential_reason": None, "subject": "college_chemistry",
    } | changes  # fmt: skip


def load(tmp_path, rows, protocol="card", name="test.jsonl"):
    write_rows(tmp_path / "mmlu_redux" / name, rows)
    return get_task("mmlu_redux").load(protocol, str(tmp_path)).documents


def scores(document, letters="ABCD"):
    """Returns, for each metric, the letters that it takes for right."""
    right = {}
    for letter in letters:
        for name, (value,) in document.score(letter).metrics.items():
            right[name] = right.get(name, "") + (letter if value else "")
    return right


@pytest.mark.parametrize(
    ("error_type", "correct_answer", "expected"),
    [
        ("ok", None, {"accuracy": "B", "accuracy_ok": "B", "accuracy_corrected": "B"}),
        ("ok", "either 1 or 3", {"accuracy": "B", "accuracy_ok": "B", "accuracy_corrected": "B"}),
        ("wrong_groundtruth", "2", {"accuracy": "B", "accuracy_corrected": "C"}),
        ("wrong_groundtruth", 2, {"accuracy": "B", "accuracy_corrected": "C"}),
        ("wrong_groundtruth", "D", {"accuracy": "B", "accuracy_corrected": "D"}),
        ("wrong_groundtruth", "Lead ", {"accuracy": "B", "accuracy_corrected": "D"}),
        ("wrong_groundtruth", "", {"accuracy": "B"}),
        ("wrong_groundtruth", None, {"accuracy": "B"}),
        ("wrong_groundtruth", "4", {"accuracy": "B"}),
        ("wrong_groundtruth", "not sure", {"accuracy": "B"}),
        ("multiple_correct_answers", "1, 3", {"accuracy": "B", "accuracy_corrected": "BD"}),
        ("multiple_correct_answers", "(0, 1)", {"accuracy": "B", "accuracy_corrected": "AB"}),
        ("multiple_correct_answers", "A,C", {"accuracy": "B", "accuracy_corrected": "AC"}),
        ("multiple_correct_answers", "0 or 2", {"accuracy": "B", "accuracy_corrected": "AC"}),
        ("multiple_correct_answers", "2 and 3", {"accuracy": "B", "accuracy_corrected": "CD"}),
        ("multiple_correct_answers", "0 1 2 3", {"accuracy": "B", "accuracy_corrected": "ABCD"}),
        ("multiple_correct_answers", "2", {"accuracy": "B", "accuracy_corrected": "C"}),
        ("multiple_correct_answers", "depends on interpretation", {"accuracy": "B"}),
        ("multiple_correct_answers", "", {"accuracy": "B"}),
        ("no_correct_answer", "osmium", {"accuracy": "B", "accuracy_corrected": "B"}),
        ("no_correct_answer", "3", {"accuracy": "B", "accuracy_corrected": "B"}),
        ("no_correct_answer", "", {"accuracy": "B"}),
        ("bad_question_clarity", "0", {"accuracy": "B", "accuracy_corrected": "B"}),
        ("bad_options_clarity", "the options repeat", {"accuracy": "B", "accuracy_corrected": "B"}),
        ("expert", None, {"accuracy": "B", "accuracy_corrected": "B"}),
    ],
)  # fmt: skip
def test_which_letters_are_right(tmp_path, error_type, correct_answer, expected):
    (document,) = load(tmp_path, [row(error_type, correct_answer)])
    assert scores(document) == {name: expected[name] for name in scores(document)}
    assert set(scores(document)) == set(expected)
    assert document.target == "B"


def test_a_choice_of_the_same_text_is_as_right(tmp_path):
    choices = ["rises", "falls", "stays", "rises"]
    (document,) = load(tmp_path, [row("multiple_correct_answers", "3", choices=choices, answer=3)])
    assert scores(document) == {"accuracy": "D", "accuracy_corrected": "AD"}


@pytest.mark.parametrize(
    "written", ["no_correct_answer", "No Correct Answer", " no correct Answer ", "no-correct-answer"]
)
def test_error_types_are_read_however_they_are_written(tmp_path, written):
    (document,) = load(tmp_path, [row(written, "osmium")])
    assert "B. osmium" in document.messages[0]["content"]


@pytest.mark.parametrize("protocol", ["official", "lm-eval"])
def test_other_protocols_ask_the_question_as_it_is(tmp_path, protocol):
    (document,) = load(tmp_path, [row("no_correct_answer", "osmium")], protocol)
    assert "osmium" not in document.messages[0]["content"]
    assert scores(document) == {"accuracy": "B"}


def test_a_summary_of_hand_made_rows(tmp_path):
    """B to six rows meets 5 of 6 labels, 1 of 1 that is ok, and 3 of the 4 that are corrected or stand."""
    rows = [
        row(), row("wrong_groundtruth", "0"), row("multiple_correct_answers", "1,2"),
        row("no_correct_answer", "osmium"), row("no_correct_answer", ""),
        row("multiple_correct_answers", "unclear", answer=0),
    ]  # fmt: skip
    task = get_task("mmlu_redux")
    samples = [
        make_sample(each, Reply(None, "Answer: B", "stop"), task.protocol("card")) for each in load(tmp_path, rows)
    ]
    metrics = summarize(samples, headline=task.headline, macro=task.macro)["metrics"]
    assert {name: (round(metric["value"], 6), metric["n"]) for name, metric in metrics.items()} == {
        "accuracy": (round(5 / 6, 6), 6), "accuracy_ok": (1, 1), "accuracy_corrected": (0.75, 4),
    }  # fmt: skip


def test_the_prompts_of_card_and_official(tmp_path):
    options = "A. iron\nB. gold\nC. tin\nD. lead"
    (card,) = load(tmp_path, [row()])
    assert card.messages == [{"role": "user", "content": f"Which is dense?\n\n{options}\n\n{CARD_REQUEST}"}]
    (official,) = load(tmp_path, [row()], "official")
    prompt = (
        "The following are multiple choice questions (with answers) about college chemistry.\n\n"
        f"Question: Which is dense?\n{options}\nAnswer:"
    )
    assert official.messages == [{"role": "user", "content": prompt}]
    assert official.text == card.text == prompt
    assert official.likelihood.context == prompt
    assert (official.likelihood.choices, official.likelihood.gold) == ((" A", " B", " C", " D"), {1})
    assert (official.group, official.id) == ("college_chemistry", 0)


@pytest.mark.parametrize("subject", ["anatomy", "high_school_us_history", "world_religions", "professional_law"])
def test_the_prompt_of_lm_eval(tmp_path, subject):
    rows = [row(subject=subject, question="  Which is dense?\n", choices=["a b", " c", "$d$", "e."])]
    (document,) = load(tmp_path, rows, "lm-eval")
    task = lm_eval_task(f"mmlu-redux/generative/mmlu_{subject}.yaml", {"test": rows})
    assert document.text == document.messages[0]["content"] == task.fewshot_context(task.dataset["test"][0], 0)


def test_every_subject_is_described_as_lm_eval_does(tmp_path):
    rows = [row(subject=subject) for subject in mmlu_redux.SUBJECTS]
    task = lm_eval_task("mmlu-redux/generative/mmlu_anatomy.yaml", {"test": rows})
    for document, fields in zip(load(tmp_path, rows, "lm-eval"), rows, strict=True):
        own = lm_eval_task(f"mmlu-redux/generative/mmlu_{fields['subject']}.yaml", {"test": [fields]})
        assert document.text == own.config.description + task.doc_to_text(fields)
    assert len(set(mmlu_redux.SUBJECTS)) == 57


@pytest.mark.parametrize(
    ("protocol", "response", "letter"),
    [
        ("lm-eval", "B", "B"), ("lm-eval", "(C)", "C"), ("lm-eval", "Because it is heavy: D", "B"),
        ("lm-eval", "the answer is d", None), ("lm-eval", "I think A or D", "A"), ("lm-eval", "", None),
        ("official", " B", "B"), ("official", "B\n\nQuestion: Which is light?\nA", "B"), ("official", "B.", None),
        ("official", "\n\nC", "C"), ("official", "The answer is B", None), ("official", "E", None),
        ("official", "", None),
        ("card", '"answer": "B"', "B"), ("card", "At first A. No, the answer is C.", "C"), ("card", "E", None),
        ("card", "", None), ("card", "I do not know", None),
    ],
)  # fmt: skip
def test_what_is_read_from_a_response(tmp_path, protocol, response, letter):
    (document,) = load(tmp_path, [row()], protocol)
    verdict = document.score(response)
    assert (verdict.prediction, verdict.parsed, verdict.correct) == (letter, letter is not None, letter == "B")


def test_lm_eval_reads_the_same(tmp_path):
    rows = [row()]
    task = lm_eval_task("mmlu-redux/generative/mmlu_college_chemistry.yaml", {"test": rows})
    (document,) = load(tmp_path, rows, "lm-eval")
    for response in ["B", "b", "(B)", "Because", "ABCD", "no", "", " C", "Dense: B", "Answer: B", "\nB"]:
        found = [[response]]
        for step in task._filters[0].filters:
            found = list(step().apply(found, [{}]))
        assert document.score(response).metrics["accuracy"] == [found == ["B"]], response


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 4}, r"test\.jsonl:1: answer=4 is the number of no choice; give 0 to 3"),
        ({"answer": "1"}, r"answer='1' is a str, expected int"),
        ({"choices": CHOICES[:3]}, r"choices=\['iron', 'gold', 'tin'\] must be 4 texts"),
        ({"choices": "['a', 'b'"}, r'choices="\[\'a\', \'b\'" is no list of texts'),
        ({"choices": "{1: 2}"}, r"must be 4 texts"),
        ({"error_type": "fine"}, r"error_type='fine' is unknown; give one of ok, wrong_groundtruth"),
        ({"error_type": None}, r"error_type=None is a NoneType, expected str"),
        ({"correct_answer": [1]}, r"correct_answer=\[1\] is a list"),
        ({"subject": None}, r"subject=None is a NoneType"),
    ],
)
def test_wrong_rows(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [row(**changes)])


def write_stream(path):
    """Writes a row without its subject, as the hub's files are."""
    table = pyarrow.Table.from_pylist([{name: value for name, value in row().items() if name != "subject"}])
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return path


def test_a_file_of_each_subject_is_fetched_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(repo, filename, *, repo_type, revision):
        asked.append((repo, revision))
        return str(write_stream(tmp_path / filename))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = get_task("mmlu_redux").load("card", None)
    assert [document.group for document in loaded.documents] == list(mmlu_redux.SUBJECTS)
    assert set(asked) == {tuple(loaded.source.split("@"))}
    assert (tmp_path / "anatomy" / "data-00000-of-00001.arrow").is_file()


def test_the_hubs_own_files_are_read(tmp_path):
    """One folder a subject, each with the stream that ``datasets`` saves; the subject is the folder's name."""
    for subject in ("anatomy", "virology"):
        write_stream(tmp_path / "mmlu_redux" / subject / "data-00000-of-00001.arrow")
    documents = get_task("mmlu_redux").load("card", str(tmp_path)).documents
    assert [(document.group, document.id) for document in documents] == [("anatomy", 0), ("virology", 1)]
    with pytest.raises(ValueError, match="put the data of mmlu_redux at"):
        get_task("mmlu_redux").load("card", str(tmp_path), split="dev")


def test_a_correction_that_no_field_holds_is_missed(tmp_path):
    fields = row("wrong_groundtruth", "2")
    fields["corrected"] = fields.pop("correct_answer")
    with pytest.raises(ValueError, match="no field 'correct_answer'; the row has"):
        load(tmp_path, [fields])
    assert len(load(tmp_path, [fields | {"error_type": "ok"}])) == 1


def test_a_broken_stream_is_named(tmp_path):
    path = tmp_path / "mmlu_redux" / "anatomy" / "data-00000-of-00001.arrow"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xff\xff\xff broken")
    with pytest.raises(ValueError, match=f"cannot read .*{path.name}"):
        get_task("mmlu_redux").load("card", str(tmp_path))


class Likely:
    """Finds the third letter most likely."""

    fingerprint = "likely"

    def score(self, likelihoods):
        return [[-2.0, -3.0, -1.0, -4.0] for _ in likelihoods]


def test_letters_are_compared_by_likelihood(tmp_path):
    documents = load(tmp_path, [row(answer=2), row()], "official")
    assert [sample["correct"] for sample in choose(documents, Likely())] == [True, False]


# The annotators' files have commas or semicolons between fields, their columns in three orders, and one Macintosh text.
COUNTS = {
    "ok": 5330, "bad_question_clarity": 132, "wrong_groundtruth": 107, "multiple_correct_answers": 39,
    "no_correct_answer": 35, "expert": 32, "bad_options_clarity": 25,
}  # fmt: skip
FIELDS = ("question", "choices", "answer", "error_type", "source", "correct_answer", "potential_reason")


def annotated_rows(path):
    """Returns the rows of an annotators' file with the hub's names."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("mac_roman")
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [{name: each[name] for name in FIELDS} | {"answer": int(each["answer"])} for each in rows]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    shared = shared_dir()
    if shared is None:
        pytest.skip("the annotators' files are not here")
    folder = tmp_path_factory.mktemp("redux")
    for path in sorted((shared / "data" / "mmlu_redux" / "labels").glob("*.csv")):
        write_rows(folder / "mmlu_redux" / path.stem.removeprefix("mmlu_") / "test.jsonl", annotated_rows(path))
    return folder


@pytest.mark.parametrize("protocol", ["card", "official", "lm-eval"])
def test_every_annotated_row(annotated, protocol):
    task = get_task("mmlu_redux")
    documents = task.load(protocol, str(annotated)).documents
    assert Counter(document.group for document in documents) == dict.fromkeys(mmlu_redux.SUBJECTS, 100)
    counts = Counter(name for document in documents for name in document.score(document.target).metrics)
    # Left out are the rows without a corrected label: 5 of the wrong, 10 of the multiple, and of those without a
    # correct answer the 14 that tell none; without the corrected text in the prompt, all 35 of the last.
    left_out = 5 + 10 + (14 if protocol == "card" else 35)
    assert counts == {"accuracy": 5700, "accuracy_ok": 5330, "accuracy_corrected": 5700 - left_out}
    # Of the 102 wrong labels that are corrected, one is given again; the multiple answers all hold MMLU's label.
    right = sum(document.score(document.target).metrics.get("accuracy_corrected", [0])[0] for document in documents)
    assert right == 5700 - left_out - 101


def test_error_types_as_the_authors_count_them(annotated):
    task = get_task("mmlu_redux")
    rows = [json.loads(line) for path in sorted(annotated.rglob("*.jsonl")) for line in path.open(encoding="utf-8")]
    types = Counter(each["error_type"].strip().lower().replace(" ", "_") for each in rows)
    assert types == COUNTS
    assert len(task.load("card", str(annotated)).documents) == sum(COUNTS.values())
