"""Prompts with images: which give one, what their answers look like in a batch, and how they are found again."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from flax import nnx

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.model import Qwen35
from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.image import image_patches, load_image
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.vision.mrope import mrope_positions
from tests.processing.conftest import TEXTS
from tests.train.conftest import small_config
from tests.train.data.pictures import IMAGE, VISION, as_png, asks, drawn, pads, part, show_images, text
from tests.train.data.pictures import documents as documents_of
from tests.train.rollouts.conftest import SETTINGS
from tests.train.rollouts.test_held_out import STATE
from train.batch import TOKEN_FIELDS
from train.config import DataConfig
from train.data import vision
from train.data.documents import Documents
from train.data.packing import make_batch
from train.data.vision import VisionReader
from train.objectives.rollouts import ROLLOUT_FIELDS
from train.rollouts import sampler
from train.rollouts.layout import pack
from train.rollouts.prompts import Prompts, most_patches
from train.rollouts.rollout import Rollout, from_json, to_json

LONGER = dataclasses.replace(SETTINGS, max_prompt_tokens=72)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = build_tiny_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=400)
    return Tokenizer.from_pretrained(show_images(folder))


@pytest.fixture
def open_documents(tmp_path, tokenizer):
    """Writes questions about images, whose files have the numbers of their rows, and opens them."""

    def open_documents(*sides, sequence_length=160):
        rows = []
        for number, (height, width) in enumerate(sides):
            drawn(height, width, seed=number).save(tmp_path / f"{number}.png")
            rows.append(asks(part(image=f"{number}.png"), text("Colour?")))
        rows.append(asks(text("Which number?")))
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(str(path), sequence_length, sequences_per_batch=2, vision=VISION)
        reader = VisionReader(VISION, ImageSettings(), VideoSettings(), tokenizer)
        documents = Documents(config, tokenizer, reader)
        documents.check()
        return documents

    return open_documents


def answers_to(prompts, rng):
    """Stands for the engine: two answers to each prompt."""
    made = []
    for prompt in prompts:
        for number in range(2):
            ids = rng.integers(0, 200, rng.integers(1, 9)).astype(np.int32)
            made.append(Rollout(prompt, number, ids, np.full(len(ids), -1, np.float32)))
    return made


def lay_out(documents, rollouts):
    return make_batch(
        [sequence for sequence in pack(rollouts, 4, documents.config) if sequence],
        sequence_length=160,
        pad_token_id=0,
        fields={**TOKEN_FIELDS, **ROLLOUT_FIELDS},
        vision=documents.vision,
    )


def test_each_answer_stands_behind_its_prompt_with_the_images_of_the_prompt(
    open_documents,
    tokenizer,
    tmp_path,
    monkeypatch,
):
    made = []
    monkeypatch.setattr(vision, "image_patches", lambda *given: made.append(given) or image_patches(*given))
    documents = open_documents((64, 96), (32, 64))
    prompts = Prompts(documents, LONGER).take(3)
    rollouts = answers_to(prompts, np.random.default_rng(0))
    found = [*documents_of([lay_out(documents, rollouts)], tokenizer)]
    assert len(found) == len(rollouts) == 6
    shown = 0
    for each in rollouts:
        ids = [*each.prompt.token_ids.tolist(), *each.answer.tolist()]
        row = int(documents.where(each.prompt.position).split()[-1]) - 1
        patches, grids = np.zeros((0, 1536), np.uint8), np.zeros((0, 3), np.int32)
        if row < 2:
            patches, grid = image_patches(load_image(tmp_path / f"{row}.png"), IMAGE)
            grids, shown = grid[None], shown + 1
        [(_, trained, positions, pixels)] = [each for each in found if each[0].tolist() == ids]
        np.testing.assert_array_equal(trained, np.arange(len(ids)) >= len(each.prompt.token_ids))
        np.testing.assert_array_equal(pixels, patches)
        want, _ = mrope_positions(np.array([ids]), grids, **pads(tokenizer))
        np.testing.assert_array_equal(positions, want[:, 0].T)
    # Both answers to a prompt show one picture, which is decoded once.
    assert shown == 4 and len(made) == 2


def test_prompts_are_the_conversation_with_as_many_pads_as_the_image_has_tokens(open_documents, tokenizer):
    documents = open_documents((64, 96))
    [ids] = {
        tuple(prompt.token_ids.tolist()) for prompt in Prompts(documents, LONGER).take(2) if prompt.document.pictures
    }
    rendered = tokenizer.chat_template.render(asks(part(), text("Colour?"))["messages"][:1], add_generation_prompt=True)
    assert list(ids) == tokenizer.encode(rendered.replace("<|image_pad|>", "<|image_pad|>" * 6))


def test_prompts_whose_image_is_damaged_or_too_large_are_left_out(open_documents, tmp_path, caplog):
    documents = open_documents((64, 96), (96, 96), (32, 64), (64, 64), sequence_length=320)
    whole = as_png(drawn(64, 96))
    (tmp_path / "0.png").write_bytes(whole[: len(whole) // 2])
    # Eight documents of 40 tokens fit a sequence, and so each may have an eighth of its 256 patches.
    settings = dataclasses.replace(SETTINGS, max_prompt_tokens=32)
    assert most_patches(settings, documents.config) == 32
    prompts = Prompts(documents, settings)
    with caplog.at_level(logging.WARNING):
        taken = prompts.take(9)
    assert {prompt.document.num_patches for prompt in taken} == {0, 8, 16}
    assert prompts.left_out.keys() == {"media", "too_many_patches"}
    assert prompts.left_out.total() + len(taken) == prompts.position
    assert "36 patches, more than the 32 of each document in a sequence; raise --data.vision.patches" in caplog.text
    assert "line 1 is left out, as are all rows like it: image 1 of the row" in caplog.text


def test_data_whose_images_are_all_missing_are_refused_with_the_first_of_them(open_documents, tokenizer, tmp_path):
    documents = open_documents((64, 96), (32, 64))
    (tmp_path / "0.png").unlink()
    assert Prompts(documents, LONGER).look().startswith("2 of the first 3 rows give a prompt; ")
    (tmp_path / "1.png").unlink()
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:2]))
    missing = Documents(documents.config, tokenizer, documents.vision)
    wanted = (
        r"none of the first 2 rows .* gives a prompt: \{'media': 2\}; mend .*line \d: image 1 of the row: there is no"
    )
    with pytest.raises(ValueError, match=wanted):
        Prompts(missing, LONGER).look()


def test_prompts_are_taken_in_the_same_order_however_many_at_once(open_documents, tmp_path):
    documents = open_documents((64, 96), (96, 96), (32, 64))
    (tmp_path / "0.png").write_bytes(b"no image")
    together, one_by_one = Prompts(documents, LONGER), Prompts(documents, LONGER)
    found = together.take(7), [prompt for _ in range(7) for prompt in one_by_one.take(1)]
    assert [each.position for each in found[0]] == [each.position for each in found[1]]
    assert together.get_state() == one_by_one.get_state()


def test_a_prompt_of_a_checkpoint_is_found_again_with_its_image(open_documents, tokenizer, tmp_path):
    documents = open_documents((64, 96), (32, 64))
    rollouts = answers_to(Prompts(documents, LONGER).take(3), np.random.default_rng(0))
    want, stored = lay_out(documents, rollouts), to_json(rollouts)
    again = from_json(json.loads(json.dumps(stored)), Prompts(documents, LONGER).again)
    for name, array in lay_out(documents, again).items():
        np.testing.assert_array_equal(array, want[name], err_msg=name)
    drawn(96, 96).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"line 1: the prompt is not the one .*: its tokens were others; put"):
        from_json(stored, Prompts(documents, LONGER).again)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"rows\.jsonl line 1: .* there is no file '0\.png' in .*; put its images"):
        from_json(stored, Prompts(documents, LONGER).again)


def test_processes_that_decoded_other_images_end_before_they_sample(open_documents, tokenizer, monkeypatch):
    documents = open_documents((64, 96), (32, 64))
    prompts = Prompts(documents, LONGER).take(3)
    answers = sampler.Sampler(LONGER, documents.config, tokenizer, lambda _: pytest.fail("it samples"), seed=0)
    monkeypatch.setattr(sampler, "exchange", lambda own: [own, own[1:]])
    with pytest.raises(ValueError, match="the processes have prompts with other images"):
        answers.sample(STATE, prompts)


def test_a_model_that_sees_is_asked_for_no_tokens_of_images():
    config = small_config()
    for has_tower, bias in ((True, {config.image_token_id: -100, config.video_token_id: -100}), (False, {})):
        model = nnx.eval_shape(lambda has_tower=has_tower: Qwen35(config, vision=has_tower, rngs=nnx.Rngs(0)))
        asked = sampler._without_pads(SETTINGS.sampling, model)
        assert asked == dataclasses.replace(SETTINGS.sampling, logit_bias=bias)
