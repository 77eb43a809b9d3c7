"""The page as a whole: well-formed, self-contained, escaped, bounded, the same every time, and without absent parts."""

import dataclasses
import html.parser
import json
import re
from collections import Counter

import pytest

from eval.protocols import Protocol
from eval.samples import Reply, SampleFile, make_sample, samples_path
from eval.tasks.base import Document, Verdict, user_turn
from tests.eval.report.fake_run import write_page, write_run

VOID = {"meta", "wbr", "br"}
HOSTILE = "</pre></script><img onerror=alert(1)><script>alert('2')</script>\"' onload=\"x&lt;{{ 7*7 }}\x1b[31m\u202e"
# What runs, or loads something.
FORBIDDEN = {"script", "img", "iframe", "link", "object", "embed", "form", "input", "base", "image", "use"}


class Page(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects elements, attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], Counter(), [], ""
        self.pictures, self.ids = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *each) for each in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "svg":
            self.pictures.append({"attributes": dict(attrs), "title": "", "desc": "", "depth": len(self.open)})
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *each) for each in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] in (["title"], ["desc"]) and self.open[-2:-1] == ["svg"]:
            self.pictures[-1][self.open[-1]] += data


def page_of(out):
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    return Page(text)


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """A directory with two tasks, its results and documents."""
    out = tmp_path_factory.mktemp("fake")
    return out, *write_run(out, ("mmlu_pro", "supergpqa"))


def test_the_page_is_well_formed_and_needs_nothing_else(fake):
    page = page_of(fake[0])
    assert not page.tags.keys() & FORBIDDEN
    links = [value for _, name, value in page.attributes if name in ("href", "src", "srcset", "data", "action")]
    assert sorted(links) == ["#task1", "#task2"] and {"task1", "task2"} <= set(page.ids)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    style = re.search("<style>(.*?)</style>", (fake[0] / "report.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert len(set(page.ids)) == len(page.ids)


def test_every_picture_has_a_title_and_a_description(fake):
    page = page_of(fake[0])
    told = [each for each in page.pictures if each["attributes"].get("role") == "img"]
    # Two scores, two times 14 subjects, two curves, and two times two times three histograms.
    assert len(told) == 2 + 28 + 2 + 12
    for picture in told:
        assert picture["title"] and any(letter.isdigit() for letter in picture["desc"])
        named = picture["attributes"].get("aria-labelledby")
        assert named is None or set(named.split()) <= set(page.ids)
        assert named or picture["attributes"]["aria-label"]
    parts = [each for each in page.pictures if each not in told and each["depth"] == min(p["depth"] for p in told)]
    assert all(each["attributes"].get("aria-hidden") for each in parts)


def test_the_figures_stand_beside_what_they_were_measured_under(fake):
    out, results, _ = fake
    text = page_of(out).text
    for task, summary in results["tasks"].items():
        metric, cut = summary["metrics"]["accuracy"], summary["cut"]
        interval = f"[{100 * metric['low']:.2f}, {100 * metric['high']:.2f}]"
        assert f"{100 * metric['value']:.2f} % {interval} n 300" in text
        conditions = (
            f"{task} · protocol card · thinking · temperature 1, top p 0.95, top k 20, presence penalty 1.5 · at most "
            f"32,768 tokens · no thinking budget · N 300 · cut {100 * cut['value']:.2f} % "
            f"[{100 * cut['low']:.2f}, {100 * cut['high']:.2f}]"
        )
        # Under the task's name, and again with thinking, lengths, curve, subjects and samples.
        assert text.count(conditions) == 6
        difference = f"{100 * summary['card']['difference']:+.2f}".replace("-", "\u2212")
        assert f"card 66.50 %, difference {difference} points" in text and summary["card"]["note"] in text
        for subject, group in summary["groups"].items():
            assert subject in text and f"n {group['n']}" in text
        for point in summary["curve"]:
            assert f"{100 * point['value']:.2f} % [{100 * point['low']:.2f}, {100 * point['high']:.2f}]" in text


def test_prompt_thought_answer_extraction_and_target_of_a_failure_are_shown(fake):
    out, _, documents = fake
    file = SampleFile(samples_path(out, "mmlu_pro"))
    key = next(key for key, each in file.finished.items() if each["outcome"] == "unparsed")
    sample, page = file.read(key), page_of(out)
    asked = documents["mmlu_pro"][int(key[0])].messages[0]["content"]
    assert asked in page.text and sample["response"] in page.text and sample["thinking"] in page.text
    assert f"found nothing, right {sample['target']}" in page.text
    write_page(out, json.loads((out / "results.json").read_text()))
    assert asked not in page_of(out).text and sample["response"] in page_of(out).text


def one_sample_run(out, hostile):
    """Writes a page with the text in every place that a user, a model or a file can fill."""
    document = Document(
        hostile,
        [{"role": "system", "content": hostile}, {"role": "user", "content": [{"type": "text", "text": hostile}]}],
        lambda response: Verdict(False, {hostile: [False]}, response),
        group=hostile,
        target=hostile,
    )
    sample = make_sample(document, Reply(hostile, hostile, "stop"), Protocol(hostile))
    (out / "samples").mkdir(parents=True)
    SampleFile(samples_path(out, "qa")).append(sample)
    metric = {"value": 0.0, "low": 0.0, "high": 0.8, "n": 1}
    results = {
        "model": hostile, "protocol": hostile, "mode": hostile, "labels": [hostile], "intervals": hostile,
        hostile: hostile,
        "tasks": {
            "qa": {
                "n": 1, "samples": 1, "headline": hostile, "metrics": {hostile: metric}, "outcomes": {hostile: 1},
                "groups": {hostile: metric},
                "card": {"published": 0.5, "difference": 0.1, "verdict": hostile, "note": hostile},
                "source": hostile, "data": hostile,
            }
        },
    }  # fmt: skip
    write_page(out, results, {"qa": [document]})
    return page_of(out)


def test_hostile_texts_stay_texts(tmp_path):
    page, harmless = one_sample_run(tmp_path / "hostile", HOSTILE), one_sample_run(tmp_path / "harmless", "harmless")
    assert page.tags == harmless.tags
    assert Counter(each[:2] for each in page.attributes) == Counter(each[:2] for each in harmless.attributes)
    # Short places show the beginning.
    assert page.text.count(HOSTILE[:20]) == harmless.text.count("harmless") > 30
    # The escape character is shown as its picture.
    assert page.text.count(HOSTILE.replace("\x1b", "\u241b")) > 20 and "\x1b" not in page.text


def test_half_a_surrogate_pair_does_not_end_the_report(tmp_path):
    write_run(tmp_path, num_documents=150)
    path = samples_path(tmp_path, "mmlu_pro")
    lines = [json.dumps(json.loads(line) | {"response": "x\ud83d", "correct": False}) for line in path.open()]
    path.write_text("\n".join(lines) + "\n")
    write_page(tmp_path, json.loads((tmp_path / "results.json").read_text()))
    assert "x?" in page_of(tmp_path).text


def long_samples(out, task, num_samples, text):
    """Writes samples of every kind of failure, each with three long texts."""
    document = Document(0, user_turn(text), lambda response: Verdict(False, {"accuracy": [0.0]}, response), target="A")
    sample = make_sample(document, Reply(text, text, "stop"), Protocol("s"))
    path = samples_path(out, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    outcomes = ("ok", "unparsed", "truncated", "loop", "empty", "error")
    ends = [json.dumps(sample | {"outcome": each}, ensure_ascii=False).partition(", ")[2] for each in outcomes]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f'{{"id": {number}, {ends[number % 6]}\n' for number in range(num_samples))
    documents = [dataclasses.replace(document, id=number) for number in range(num_samples)]
    metrics = {"accuracy": {"value": 0.0, "low": 0.0, "high": 0.1, "n": num_samples}}
    summary = {"n": num_samples, "samples": num_samples, "headline": "accuracy", "metrics": metrics, "outcomes": {}}
    return documents, summary


@pytest.mark.parametrize(
    ("num_tasks", "num_samples", "text"),
    [(1, 12_032, "Aa \n" * 1700), (9, 120, "<'&\">" * 4000), (5, 120, "一二三四\n" * 4000)],
)
def test_the_page_stays_under_two_megabytes(tmp_path, num_tasks, num_samples, text):
    documents, results = {}, {"tasks": {}}
    for number in range(num_tasks):
        task = f"task_{number}"
        documents[task], results["tasks"][task] = long_samples(tmp_path, task, num_samples, text)
    write_page(tmp_path, results, documents)
    assert 1_000_000 < (tmp_path / "report.html").stat().st_size < 2_000_000
    page = page_of(tmp_path)
    assert page.text.count(f"20 of {num_samples // 6:,}") >= 4 * num_tasks
    # Of each sample the prompt, the thought and the answer.
    assert page.text.count("characters left out") == 3 * 120 * num_tasks


def test_two_reports_of_one_run_are_equal_but_for_the_seconds(tmp_path):
    pages = []
    for seconds in (1.0, 2.5):
        out = tmp_path / str(seconds)
        results, documents = write_run(out)
        write_page(out, results | {"seconds": {"total": seconds}}, documents)
        pages.append((out / "report.html").read_bytes())
        assert json.loads((out / "results.json").read_text())["seconds"] == {"total": seconds}
    assert pages[0] == pages[1]


PARTS = {
    "cut_as_wrong": "cut = wrong",
    "finished": "finished only",
    "cut": "cut off (truncated or loop)",
    "outcomes": "How responses ended",
    "groups": "Subjects",
    "macro": "mean of the groups",
    "clustered": "clustered by group",
    "lengths": "Length of responses",
    "curve": "Score against budget",
    "thinking_curve": "budget of the thinking alone",
    "card": "card 66.50 %",
}


@pytest.mark.parametrize("name", PARTS)
def test_an_absent_part_is_left_out_and_nothing_else(fake, tmp_path, name):
    out, results, documents = fake
    (tmp_path / "samples").symlink_to(out / "samples")
    task = results["tasks"]["mmlu_pro"]
    write_page(tmp_path, results | {"tasks": {"mmlu_pro": task}}, documents)
    whole = page_of(tmp_path).text
    without = {key: value for key, value in task.items() if key != name}
    write_page(tmp_path, results | {"tasks": {"mmlu_pro": without}}, documents)
    text = page_of(tmp_path).text
    gone = {part for key, part in PARTS.items() if part in whole and part not in text}
    also = {"outcomes": {PARTS["cut"]}, "curve": {PARTS["thinking_curve"]}}
    assert PARTS[name] in whole and gone == {PARTS[name]} | also.get(name, set())


def test_the_least_results_make_a_page(tmp_path):
    metrics = {"bleu": {"value": 31.5, "low": 20.0, "high": 43.0}}
    summary = {"n": 2, "samples": 2, "headline": "bleu", "metrics": metrics}
    write_page(tmp_path, {"tasks": {"mine": summary}})
    page = page_of(tmp_path)
    assert "31.5 [20, 43]" in page.text
    assert not [part for part in PARTS.values() if part in page.text] and "Samples that" not in page.text
    assert "None" not in page.text
    write_page(tmp_path, {"tasks": {}})
    assert page_of(tmp_path).tags["h2"] == 1


def test_several_samples_labels_and_missing_documents_are_told(fake, tmp_path):
    _, results, _ = fake
    summary = results["tasks"]["mmlu_pro"] | {
        "missing": 1234,
        "closed_by_budget": 17,
        "pass_at": {"1": {"value": 0.5, "low": 0.4, "high": 0.6}, "2": {"value": 0.7, "low": 0.6, "high": 0.8}},
    }
    changed = {"labels": ["seed", "top_k"], "repeats": 2, "thinking_budget": 512}
    write_page(tmp_path, results | changed | {"tasks": {"mmlu_pro": summary}})
    text = page_of(tmp_path).text
    for words in (
        "The backend ignores: seed, top_k", "1,234 documents have no response", "pass@2", "70.00 % [60.00, 80.00]",
        "The budget closed the thinking of 17.", "thinking budget 512 tokens (sentence) · N 300 · 2 samples each",
    ):  # fmt: skip
        assert words in text, words
