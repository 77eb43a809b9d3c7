"""Images and videos on the command line: generate, chat and serve with a tiny checkpoint that has a tower."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.cli import main
from qwen35_jax.commands import serve as serve_command
from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.inference.chat import chat
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prompts import conversation_prompt
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Processor, Tokenizer
from qwen35_jax.processing.processor import PADS
from tests.conftest import PUBLISHED
from tests.inference.scripted import ScriptedEngine

SHORT = ["--dtype", "float32", "--cache-tokens", "1024", "--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A random float32 model whose images have at most 16 tokens."""
    folder = build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    shutil.copy(PUBLISHED / "chat_template_2b_and_below.jinja", folder / "chat_template.jinja")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        sizes = {"size": {"shortest_edge": 1024, "longest_edge": 16384}, "patch_size": 16, "merge_size": 2}
        (folder / name).write_text(json.dumps(sizes))
    tokenizer = Tokenizer.from_pretrained(folder)
    text = dataclasses.replace(PRESETS["tiny"].text, num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2)
    pads = {f"{kind}_token_id": tokenizer.token_id(pad) for kind, pad in PADS.items()}
    config = dataclasses.replace(PRESETS["tiny"], text=text, **pads)
    out = tmp_path_factory.mktemp("model") / "tiny"
    return str(create_checkpoint(config, out, seed=0, dtype="float32", tokenizer_from=folder))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def question(picture, text="What is it?"):
    return [{"role": "user", "content": [{"type": "image", "image": str(picture)}, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def expected(checkpoint, pictures):
    """What an engine writes about each picture."""
    processor = Processor.from_pretrained(checkpoint)
    engine = Engine(load(checkpoint, "float32"), processor.tokenizer, slots=2, cache_tokens=1024)
    prompts = [conversation_prompt(processor, question(pictures / f"{number}.png")) for number in range(2)]
    return engine.generate(prompts, max_new_tokens=5, sampling=SamplingParams(logprobs=0))


def test_a_file_of_conversations_may_name_pictures_beside_it(checkpoint, pictures, expected, tmp_path):
    rows = [{"id": number, "messages": question(f"{number}.png")} for number in range(2)]
    rows += [{"id": "text", "messages": [{"role": "user", "content": "hi"}]}]
    source, out = pictures / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--input", str(source), "--output", str(out), "--samples", "2", "--logprobs", "0", "--slots", "2"]
    main(["generate", "--model", checkpoint, *files, *SHORT])
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["repeat"]) for row in written] == [(i, j) for i in (0, 1, "text") for j in (0, 1)]
    for row in written[:4]:
        want = expected[row["id"]]
        assert [each["token_id"] for each in row["logprobs"]] == want.token_ids
        np.testing.assert_allclose(row["logprobs"][0]["model"], want.logprobs[0].model, atol=1e-5)
    assert expected[0].logprobs != expected[1].logprobs


def test_pictures_are_given_to_prompts_by_option(checkpoint, pictures, expected, capsys):
    main(["generate", "--model", checkpoint, "What is it?", "--image", str(pictures / "1.png"), *SHORT])
    assert capsys.readouterr().out.strip() == expected[1].answer.strip()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"content": "<image> What?", "images": ["0.png"]}, 'line 1: the row has "images"'),
        (
            {"content": "What is <|image_pad|>?"},
            "line 1: the conversation has 1 images and 0 videos in its text",
        ),
    ],
)
def test_rows_whose_pictures_would_be_overlooked_end_in_one_line(checkpoint, tmp_path, capsys, row, message):
    messages = [{"role": "user", "content": row.pop("content")}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages, **row}))
    with pytest.raises(SystemExit):
        main(["generate", "--model", checkpoint, "--input", str(tmp_path / "in.jsonl"), *SHORT])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_picture_that_is_not_there_is_told_with_its_row_before_the_model_is_loaded(
    checkpoint, pictures, capsys, monkeypatch
):
    monkeypatch.setattr("qwen35_jax.commands.generate.engine_of", lambda *_, **__: pytest.fail("a model was loaded"))
    rows = [{"id": name, "messages": question(f"{name}.png")} for name in ("0", "gone")]
    (pictures / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        main(["generate", "--model", checkpoint, "--input", str(pictures / "in.jsonl"), *SHORT])
    assert capsys.readouterr().err == f"error: request gone: there is no file 'gone.png' in {pictures}.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hi", "--image", "nowhere.png"], "request 0: there is no file 'nowhere.png'"),
        (["hi", "--image", "http://127.0.0.1/x.png"], "or set --allow-urls."),
        (["hi", "--image", "http://127.0.0.1/x.png", "--allow-urls"], "private"),
        (["hi", "--image", "PICTURE", "--most-patches", "-1"], "--most-patches -1; give at least 0"),
        (["--input", "x.jsonl", "--image", "x.png"], "go with prompts given as arguments"),
    ],
)
def test_wrong_pictures_end_in_one_line(checkpoint, pictures, capsys, options, message):
    options = [option.replace("PICTURE", str(pictures / "0.png")) for option in options]
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--model", checkpoint, *options, *SHORT])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_pictures_are_attached_to_the_next_turn_of_a_conversation(checkpoint, pictures, expected):
    processor = Processor.from_pretrained(checkpoint)
    engine = Engine(load(checkpoint, "float32"), processor.tokenizer, slots=1, cache_tokens=1024)
    out, how = io.StringIO(), {"sampling": SamplingParams(), "max_new_tokens": 5}
    lines = ["/image nowhere.png", f"/image {pictures / '1.png'}", "What is it?", "And now?"]
    chat(engine, lines, out, processor=processor, **how)
    wrong, attached, *rest = out.getvalue().splitlines()
    assert wrong == "error: image or video 1: there is no file 'nowhere.png'."
    assert attached == "(image of 4 tokens, for the next turn)"
    assert "\n".join(rest).startswith(expected[1].answer)
    # The second turn reads the picture again.
    assert engine.metrics.tower_runs == 2
    blind = io.StringIO()
    chat(engine, lines[1:2], blind, **how)
    assert blind.getvalue() == "error: this chat reads text alone; leave --text-only out.\n"


def test_the_path_of_a_picture_may_be_quoted_or_begin_with_the_home_folder(checkpoint, pictures, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures))
    Image.new("RGB", (64, 64)).save(pictures / "a cat.png")
    processor = Processor.from_pretrained(checkpoint)
    engine = ScriptedEngine(processor.tokenizer, [])
    file = pictures / "a cat.png"
    lines, out = [f"/image {path}" for path in (file, f'"{file}"', f"'{file}'", "~/a cat.png")], io.StringIO()
    chat(engine, lines, out, processor=processor, sampling=SamplingParams(), max_new_tokens=5)
    assert out.getvalue() == "(image of 4 tokens, for the next turn)\n" * 4


@pytest.mark.parametrize(
    ("most_patches", "cache_tokens", "patches"),
    [(None, 1024, [4]), (700, 1024, [4, 260, 516]), (2048, 256, [4, 260, 516, 772])],
)
def test_a_server_compiles_its_programs_for_images_too(checkpoint, most_patches, cache_tokens, patches):
    model, tokenizer = load(checkpoint, "float32"), Tokenizer.from_pretrained(checkpoint)
    how = {"cache_tokens": cache_tokens, "most_patches": most_patches}
    engine = Engine(model, tokenizer, slots=2, prefill_chunk=16, **how)
    serve_command._compile(engine, all_images=most_patches is not None)
    assert engine.metrics.tower_runs == len(patches) and engine.metrics.patches == sum(patches)
    assert engine.metrics.forks == 2
