"""How questions with images are asked: a server, our engine, a judge; and what is stored and shown of them."""

import base64
import dataclasses
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from eval.backends.base import Request
from eval.backends.engine import EngineBackend
from eval.backends.media import data_uri
from eval.card import against_card
from eval.cells import sampling_name
from eval.config import EvalConfig, sampling_of
from eval.run import run
from eval.tasks import get_task
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.requests import Event
from qwen35_jax.presets import PRESETS, card_eval_sampling, card_sampling
from qwen35_jax.processing.processor import Processor, VisionItem
from tests.eval.conftest import FakeEngine, write_rows
from tests.eval.openai_server import FakeServer
from tests.eval.vision.asked import BLUE, PROMPT, RED, answers, config_of


def test_a_server_gets_images_as_addresses_that_hold_them(data):
    fake = FakeServer(answers=answers("A", "B"))
    with fake.serve() as url:
        results = run(config_of(data, url))
    contents = [
        body["messages"][0]["content"] for body in fake.bodies if isinstance(body["messages"][0]["content"], list)
    ]
    assert sorted(
        part["image_url"]["url"] for content in contents for part in content if part["type"] == "image_url"
    ) == (sorted(f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (RED, BLUE)))
    assert [part["type"] for part in contents[0]] == ["image_url", "text"]
    told = results["tasks"]["mmmu"]
    assert told["metrics"]["accuracy"]["value"] == 0.5
    assert (told["modality"], told["media"]["max_pixels"]) == ("image", 4_014_080)
    assert told["sampling"]["temperature"] == 0.7 and told["sampling"]["top_p"] == 0.8
    assert "the limits of pixels and frames of mmmu (the server has its own)" in results["labels"]


def test_samples_hold_no_image_and_the_page_shows_it_beside_the_failure(data):
    fake = FakeServer(answers=answers("A", "B"))
    with fake.serve() as url:
        run(config_of(data, url))
    out = Path(data / "out")
    stored = (out / "samples" / "mmmu.jsonl").read_text()
    page = (out / "report.html").read_text()
    assert "base64" not in stored and len(stored) < 4_000
    assert page.count('<img src="data:image/jpeg;base64,') == 1 and 'alt="image 1"' in page
    assert "img-src data:" in page and len(page) < 60_000
    # 300 x 300 pixels fit into the longest side that is shown.
    assert 'width="300" height="300"' in page


def test_the_data_may_be_stored_in_another_way_when_a_run_goes_on(data):
    fake = FakeServer(answers=answers("A", "B"))
    with fake.serve() as url:
        run(config_of(data, url))
        asked = len(fake.bodies)
        folder = data / "data" / "mmmu"
        (folder / "validation.parquet").unlink()
        (folder / "a.png").write_bytes(RED)
        (folder / "b.png").write_bytes(BLUE)
        rows = [
            {"id": f"validation_Art_{number}", "question": f"What is {'it' if number == 1 else number}?",
             "options": "['red', 'blue']", "image_1": image, "answer": "A", "question_type": "multiple-choice"}
            for number, image in enumerate(("a.png", "b.png"), start=1)
        ]  # fmt: skip
        write_rows(folder / "validation.jsonl", rows)
        assert run(config_of(data, url))["seconds"]["resumed_samples"] == 2
        assert len(fake.bodies) == asked
        (folder / "b.png").write_bytes(RED)
        with pytest.raises(ValueError, match="was made with other settings"):
            run(config_of(data, url))


def test_an_engine_without_a_processor_refuses_images(data):
    config = EvalConfig(tasks=("mmmu",), protocol="card", data_dir=str(data / "data"), out=str(data / "out"))
    with pytest.raises(
        ValueError, match="'validation_Art_1' shows images or videos, but the model that is evaluated here reads text"
    ):
        run(config, FakeEngine({}))


def test_a_checkpoint_without_a_tower_is_refused_before_it_is_loaded(data, tiny_checkpoint):
    blind = Path(shutil.copytree(tiny_checkpoint, data / "blind", ignore=shutil.ignore_patterns("*.safetensors")))
    text = json.loads((blind / "config.json").read_text())["text_config"]
    (blind / "config.json").write_text(json.dumps(text | {"architectures": ["Qwen3_5ForCausalLM"]}))
    config = EvalConfig(
        model=ModelSource(str(blind)), tasks=("mmmu",), protocol="card", data_dir=str(data / "data"),
        out=str(data / "out"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no vision tower, but the questions have images or videos; give"):
        run(config)


def test_a_checkpoint_is_loaded_with_its_tower_where_questions_have_images(data, tiny_checkpoint):
    config = EvalConfig(
        model=ModelSource(tiny_checkpoint, dtype="float32"), tasks=("mmmu",), protocol="card", max_new_tokens=3,
        data_dir=str(data / "data"), out=str(data / "out"), slots=2,
    )  # fmt: skip
    run(config)
    rows = [json.loads(line) for line in (data / "out" / "samples" / "mmmu.jsonl").read_text().splitlines()]
    processor = Processor.from_pretrained(tiny_checkpoint)
    pad = processor.tokenizer.token_id("<|image_pad|>")
    # The protocol asks for 1,003,520 pixels at least, and a token covers 32 x 32 of them: 1440 x 736, 1024 x 1024.
    assert [row["prompt_ids"].count(pad) for row in rows] == [45 * 23, 32 * 32]
    assert all(len(row["token_ids"]) == 3 for row in rows)
    with pytest.raises(ValueError, match="--mtp-acceptance is measured on text alone"):
        run(dataclasses.replace(config, mtp_acceptance=True, sampling="greedy", out=str(data / "greedy")))


class ImageEngine(FakeEngine):
    """Takes model inputs in place of tokens, and answers a prompt at once."""

    def __init__(self, answers):
        super().__init__(answers)
        self.done, self.pixels = [], []

    def read(self, prompts):
        self.pixels += [prompt["pixels"] for prompt in prompts]
        return [prompt["input_ids"][0].tolist() for prompt in prompts]

    def submit(self, prompt, *, seed=0, **settings):
        [completion] = self.generate([prompt], on_finish=lambda *_: None, seed=seed, **settings)
        self.done.append(Event(len(self.calls), (), completion))
        return len(self.calls)

    def step(self):
        done, self.done = self.done, []
        return done[::-1]


class FakeProcessor(Processor):
    """Writes the texts of a conversation, and makes four patches of each image."""

    def __init__(self, tokenizer):
        self.tokenizer, self.seen = types.SimpleNamespace(chat_template=self, encode=tokenizer.encode), []

    def render(self, messages, *, enable_thinking, **_):
        assert not enable_thinking
        (message,) = messages
        return "".join(part.get("text", "") for part in message["content"]) + "<think></think>"

    def items(self, media):
        self.seen += media
        return [VisionItem("image", np.zeros((4, 2), np.uint8), np.array([1, 2, 2])) for _ in media]

    def expand(self, text, items):
        return text


def test_an_engine_gets_what_a_processor_makes(data):
    engine = ImageEngine({PROMPT: "A", PROMPT.replace("What is it?", "What is 2?"): "B"})
    processor = FakeProcessor(engine.tokenizer)
    documents = get_task("mmmu").load("card", str(data / "data")).documents
    sampling = sampling_of(EvalConfig(), get_task("mmmu").protocol("official"), lambda: None)
    requests = [
        Request(document, "chat", "non_thinking", sampling, 10, seed=seed) for document in documents for seed in (0, 1)
    ]
    replies = {}
    EngineBackend(engine, processor=processor).generate(requests, replies.__setitem__)
    assert [replies[place].response for place in range(4)] == ["A", "A", "B", "B"]
    assert [replies[place].seed for place in range(4)] == [0, 1, 0, 1]
    assert replies[1].prompt_ids == engine.tokenizer.encode(PROMPT + "<think></think>")
    # Samples of one question share their prompt.
    assert len(processor.seen) == len(engine.pixels) == 2
    assert {media.source for media in processor.seen} == {RED, BLUE}
    assert processor.seen[0].options["min_pixels"] == 1_003_520


def test_an_image_that_cannot_be_read_is_named_with_its_question(data, tiny_checkpoint):
    folder = data / "data" / "mmmu"
    (folder / "validation.parquet").unlink()
    (folder / "a.png").write_bytes(b"no image")
    row = {"id": "validation_Art_1", "question": "q", "options": ["red", "blue"], "image_1": "a.png", "answer": "A"}
    write_rows(folder / "validation.jsonl", [row])
    (document,) = get_task("mmmu").load("card", str(data / "data")).documents
    sampling = sampling_of(EvalConfig(), get_task("mmmu").protocol("official"), lambda: None)
    backend = EngineBackend(ImageEngine({}), processor=Processor.from_pretrained(tiny_checkpoint))
    with pytest.raises(
        ValueError,
        match=r"^mmmu, document 'validation_Art_1' \(.*mmmu/validation\.jsonl:1\): image or video 1: .* cannot be read",
    ):
        backend.generate([Request(document, "chat", "non_thinking", sampling, 10, seed=0)], lambda *_: None)


def test_a_task_all_of_whose_requests_fail_has_no_score(data):
    write_rows(data / "data" / "qa" / "test.jsonl", [{"question": "1+1?", "answer": "2"}])
    fake = FakeServer(answers=answers("A", "B") | {"1+1?": "2"})

    def refuse_images(body):
        fake.rejects = {"messages"} if isinstance(body["messages"][0]["content"], list) else set()

    fake.hold = refuse_images
    with fake.serve() as url:
        alone = config_of(data, url)
        said = (
            r"mmmu: 2 of 2 requests failed; the first, of document 'validation_Art_1': HTTP 400: unknown field messages"
        )
        with pytest.raises(ValueError, match=rf"^{said}\. There is no score of mmmu\.$"):
            run(alone)
        assert not (data / "out" / "results.json").exists()
        both = config_of(data, url, tasks=("mmmu", "qa"), out=str(data / "both"))
        both = dataclasses.replace(both, server=dataclasses.replace(both.server, connections=1))
        with pytest.raises(ValueError, match=r"There is no score of mmmu\. That of qa is in .*report\.html\.$"):
            run(both)
        told = json.loads((data / "both" / "results.json").read_text())["tasks"]
        assert told.keys() == {"qa"} and told["qa"]["metrics"]["accuracy"]["value"] == 1
        fake.hold, fake.rejects = lambda body: None, set()
        # What failed is asked for again.
        assert run(alone)["tasks"]["mmmu"]["metrics"]["accuracy"]["value"] == 0.5


def test_requests_that_fail_beside_others_count_as_errors(data, caplog):
    fake = FakeServer(answers=answers("A", "B"))

    def refuse_one(body):
        content = body["messages"][0]["content"]
        fake.rejects = {"messages"} if isinstance(content, list) and "What is 2?" in content[1]["text"] else set()

    fake.hold = refuse_one
    with fake.serve() as url:
        config = config_of(data, url)
        results = run(dataclasses.replace(config, server=dataclasses.replace(config.server, connections=1)))
    assert results["tasks"]["mmmu"]["outcomes"]["error"] == 1
    assert "mmmu: 1 of 2 requests failed; the first, of document 'validation_Art_2': HTTP 400" in caplog.text


@pytest.mark.parametrize(
    ("mode", "modality", "name", "values"),
    [
        ("thinking", "image", "card_eval", (0.6, 20, 0.95, 1.5)),
        ("thinking", "video", "card_eval", (1.0, 20, 0.95, 1.5)),
        ("non_thinking", "image", "card_eval", (0.7, 20, 0.8, 1.5)),
        ("non_thinking", "video", "card_eval", (0.7, 20, 0.8, 1.5)),
        ("thinking", "image", "card_recommended", (0.6, 20, 0.95, 0.0)),
        ("non_thinking", "image", "card_recommended", (0.7, 20, 0.8, 1.5)),
        ("thinking", "text", "card_eval", (1.0, 20, 0.95, 1.5)),
    ],
)
def test_the_cards_settings_for_vision(mode, modality, name, values):
    task = {"image": "mmmu", "video": "videomme", "text": "mmlu_pro"}[modality]
    config = EvalConfig(tasks=(task,), mode=mode, protocol="card", sampling=name)
    sampling = sampling_of(config, get_task(task).protocol("card"), lambda: PRESETS["2b"])
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.presence_penalty) == values
    known = card_eval_sampling(mode, modality), card_sampling(PRESETS["2b"], mode, modality)
    assert values in [tuple(each) for each in known]
    # The two sets are one without thinking.
    told = sampling_name(dataclasses.asdict(sampling), mode, modality)
    assert told == ("card_eval" if mode == "non_thinking" else name)


def test_a_result_of_vision_is_judged_by_its_own_settings():
    config = EvalConfig(tasks=("mmmu",), mode="thinking", protocol="card")
    metric = {"value": 0.64, "low": 0.61, "high": 0.67, "n": 900}
    sampling = dataclasses.asdict(sampling_of(config, get_task("mmmu").protocol("card"), lambda: PRESETS["2b"]))
    summary = {
        "n": 900, "headline": "accuracy", "metrics": {"accuracy": metric}, "modality": "image", "sampling": sampling,
        "max_new_tokens": 32_768, "cut": {"count": 0, "value": 0.0, "unknown": 0}, "finished": {},
    }  # fmt: skip
    how = {"protocol": "card"}
    told = against_card(summary, "mmmu", how, "2b", "thinking")
    assert told["met"] is True and told["published"] == 0.642 and "which judge read the answers" in told["note"]
    text = summary | {"sampling": sampling | {"temperature": 1.0}}
    told = against_card(text, "mmmu", how, "2b", "thinking")
    assert told["not_comparable"] == ["another sampling than the card's"]


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"xyz", "application/octet-stream")],
)
def test_addresses_that_hold_an_image(start, kind):
    assert data_uri(start) == f"data:{kind};base64,{base64.b64encode(start).decode()}"
