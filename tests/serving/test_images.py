"""Images and videos in requests: what a server reads, counts and refuses."""

import asyncio
import base64
import dataclasses
import io
import json
import shutil
import zlib

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prompts import conversation_prompt
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import MediaPolicy, Processor, Tokenizer
from qwen35_jax.processing.processor import PADS
from qwen35_jax.processing.settings import ImageSettings
from qwen35_jax.serving import worker as worker_module
from qwen35_jax.serving.app import make_app
from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.types import ChatRequest
from qwen35_jax.serving.worker import EngineWorker, Job
from tests.conftest import PUBLISHED
from tests.inference.conftest import seeing_model  # noqa: F401
from tests.serving.conftest import client_of, events_of

# Tokens after those of text are marks, and those that only the model has.
NO_SPECIALS = dict.fromkeys(range(267, 512), -100.0)
GREEDY = {"temperature": 0, "max_tokens": 12, "logit_bias": {str(token): bias for token, bias in NO_SPECIALS.items()}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The small one, with a published template, which knows images and videos."""
    folder = build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    shutil.copy(PUBLISHED / "chat_template_2b_and_below.jinja", folder / "chat_template.jinja")
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def server(seeing_model, tokenizer):  # noqa: F811
    """An engine that sees, and its application; an image may have 64 patches, and a request 256."""
    model = nnx.merge(*nnx.split(seeing_model))
    pads = {f"{kind}_token_id": tokenizer.token_id(pad) for kind, pad in PADS.items()}
    model.config = dataclasses.replace(model.config, **pads)
    sizes = {"slots": 4, "cache_tokens": 2048, "page_size": 16, "prefill_chunk": 32, "steps_per_call": 4}
    engine = Engine(model, tokenizer, most_patches=256, **sizes)
    image = ImageSettings(min_pixels=1024, max_pixels=64 * 256)
    processor = Processor(tokenizer, image, policy=MediaPolicy(allow_files=False))
    return engine, processor, make_app(engine, "tiny", processor=processor)


def png(seed=0, size=(64, 96)) -> bytes:
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def uri(content: bytes, kind="image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def body(*parts, **settings):
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}], **GREEDY, **settings}


def image_part(url, **options):
    return {"type": "image_url", "image_url": {"url": url, **options}}


TEXT = {"type": "text", "text": "What is it?"}


def post(app, *bodies):
    async def run():
        async with client_of(app) as client:
            return [await client.post("/v1/chat/completions", json=one) for one in bodies]

    return asyncio.run(run())


def test_an_answer_is_what_the_engine_writes_and_pads_are_counted(server):
    engine, processor, app = server
    messages = [{"role": "user", "content": [{"type": "image", "image": png()}, TEXT]}]
    prompt = conversation_prompt(processor, messages)
    [want] = engine.generate([prompt], sampling=SamplingParams(logit_bias=NO_SPECIALS), max_new_tokens=12)
    runs = engine.metrics.tower_runs
    whole, other, streamed = post(
        app,
        body(image_part(uri(png())), TEXT, n=3),
        body(image_part(uri(png(1))), TEXT),
        body(image_part(uri(png())), TEXT, stream=True, stream_options={"include_usage": True}),
    )
    answer = whole.json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [want.answer] * 3
    assert answer["usage"]["prompt_tokens"] == prompt["input_ids"].shape[1] > 6
    assert prompt["input_ids"].tolist()[0].count(engine.model.config.image_token_id) == 6
    assert engine.metrics.tower_runs == runs + 3
    events = events_of(streamed.text)
    written = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert written == want.answer and events[-1]["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert other.json()["choices"][0]["message"]["content"] != want.answer


def test_low_detail_makes_an_image_small():
    part = {"type": "image_url", "image_url": {"url": "x", "detail": "low"}}
    asked = ChatRequest.model_validate_json(json.dumps(body(part)))
    [item] = asked.messages[0].for_template()["content"]
    assert item == {"type": "image", "image": "x", "max_pixels": 512 * 512}


def test_low_detail_asks_for_no_more_than_the_checkpoint_allows(server):
    _, _, app = server
    plain, low = (image_part(uri(png(size=(256, 256))), **more) for more in ({}, {"detail": "low"}))
    replies = post(app, body(plain), body(low))
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].json()["usage"] == replies[1].json()["usage"]


def bomb() -> bytes:
    """A PNG that says it is 30,000 pixels wide and high."""
    content = bytearray(png())
    content[16:24] = np.array([30_000, 30_000], ">u4").tobytes()
    checksum = zlib.crc32(content[12:29])
    content[29:33] = np.array([checksum], ">u4").tobytes()
    return bytes(content)


@pytest.mark.parametrize(
    ("parts", "field", "message"),
    [
        ([TEXT, image_part(uri(b"no image"))], "messages.0.content.1.image_url", "cannot be read"),
        ([image_part("data:image/png;base64,!!!")], "messages.0.content.0.image_url", "no valid base64"),
        ([image_part("http://127.0.0.1/x.png")], "messages.0.content.0.image_url",
         "'http://127.0.0.1/x.png' is not fetched; send a data URI, or start the server with --allow-urls."),
        ([image_part("/etc/passwd")], "messages.0.content.0.image_url", "files are not allowed here"),
        ([image_part("file:///etc/passwd")], "messages.0.content.0.image_url", "files are not allowed here"),
        ([image_part("gs://bucket/x.png")], "messages.0.content.0.image_url", "files are not allowed here"),
        ([image_part(uri(bomb()))], "messages.0.content.0.image_url", "more pixels than max_pixels=89478485;"),
        ([image_part(uri(png(size=(1, 300))))], "messages.0.content.0.image_url", "oblong"),
        (
            [image_part(uri(png(size=(128, 128))))] * 5, "messages.0.content.4.image_url",
            "320 patches of 16 x 16 pixels, but this server takes 256 a request",
        ),
        ([{"type": "video_url", "video_url": {"url": uri(png(), "video/mp4")}}], "messages.0.content.0.video_url", ""),
        ([image_part(uri(png())), {"type": "text", "text": "<|image_pad|>"}], None, "write <|image_pad|>"),
        ([{"type": "text", "text": "<|video_pad|>"}], None, "write <|image_pad|> and <|video_pad|> in no text"),
    ],
)  # fmt: skip
def test_wrong_parts_are_refused_by_their_field_in_one_line(server, parts, field, message):
    engine, _, app = server
    [reply] = post(app, body(*parts))
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == field, error
    assert message in error["message"] and "\n" not in error["message"]
    assert not engine.has_work


def test_images_where_none_are_read_are_refused(server, scripted):
    _, app = scripted("7<|im_end|>")
    [reply] = post(app, body(TEXT, image_part(uri(png()))))
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "messages.0.content.1.image_url"
    assert "reads text alone" in reply.json()["error"]["message"]
    many = [image_part(uri(png(size=(8, 8))))] * 129
    [reply] = post(server[2], body(*many))
    assert reply.status_code == 400 and "129 images and videos; give at most 128" in reply.json()["error"]["message"]
    system = {"role": "system", "content": [image_part(uri(png()))]}
    wrong = body(TEXT)
    wrong["messages"].insert(0, system)
    [reply] = post(server[2], wrong)
    assert reply.status_code == 400 and "System message cannot contain images" in reply.json()["error"]["message"]


def test_addresses_are_fetched_where_the_policy_allows_it_but_not_private_ones(server):
    engine, processor, _ = server
    policy = MediaPolicy(allow_urls=True, allow_files=False)
    fetching = Processor(processor.tokenizer, processor.image, policy=policy)
    app = make_app(engine, "tiny", processor=fetching)
    [reply] = post(app, body(image_part("http://127.0.0.1:9/x.png")))
    assert reply.status_code == 400 and "private" in reply.json()["error"]["message"]


def test_images_that_wait_take_bounded_memory(server, monkeypatch):
    monkeypatch.setattr(worker_module, "_MAX_MEDIA_BYTES", 100)
    worker = EngineWorker(server[0], max_waiting=10)
    worker._check_capacity(1, 1000)
    job = Job([], lambda _: None)
    job.media_bytes = 60
    worker._jobs.add(job)
    worker._check_capacity(1, 40)
    with pytest.raises(RequestError, match=r"images and videos of 0 MiB wait.*ask again later") as refused:
        worker._check_capacity(1, 41)
    assert refused.value.status == 429
