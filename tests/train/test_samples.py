"""Sample answers: which prompts, what is written, under a mesh too, and that training does not notice."""

import json

import jax
import pytest

from configs.tiny_sft import config as tiny
from qwen35_jax.config import ModelConfig
from qwen35_jax.inference.generate import Request
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import MeshConfig
from tests.train.launching import LORA, timeless
from train.config import DataConfig, ModelSource, SamplesConfig
from train.data.documents import Documents
from train.data.validation import read_validation
from train.inputs import Inputs
from train.run import build
from train.samples import make_sample, read_prompts
from train.settle import settle


@pytest.fixture(scope="module")
def settings(inputs):
    data = DataConfig(str(inputs / "train.jsonl"), sequence_length=64, eval_path=str(inputs / "train.jsonl"))
    model = ModelSource(str(inputs / "base"), dtype="float32")
    return tiny().replace(model=model, data=data, samples=SamplesConfig(every=2, count=3, max_new_tokens=5))


@pytest.fixture(scope="module")
def found(settings, inputs):
    tokenizer = Tokenizer.from_pretrained(inputs / "base")
    model_config = ModelConfig.from_hf(inputs / "base")
    data = settings.recipe.data
    validation = read_validation(data, tokenizer, range(8), Documents(data, tokenizer))
    settled = settle(settings, model_config)
    return Inputs(settled, inputs / "base", model_config, tokenizer, None, None, range(8), validation)


def texts(found, prompts):
    return [found.tokenizer.decode(prompt.token_ids, skip_special_tokens=False) for prompt in prompts]


def questions(inputs):
    rows = map(json.loads, (inputs / "train.jsonl").read_text().splitlines())
    return [row["messages"][0]["content"] for row in rows]


def test_prompts_are_the_first_validation_conversations_without_their_answers(settings, found, inputs):
    shown = texts(found, read_prompts(settings, found))
    assert len(shown) == 3
    for text, question in zip(shown, questions(inputs), strict=False):
        assert question in text and "It is" not in text
        # The default of this template.
        assert text.endswith("<think>\n\n</think>\n\n")
    thinking = settings.replace(samples=SamplesConfig(every=2, mode="thinking"))
    assert all(text.endswith("<think>\n") for text in texts(found, read_prompts(thinking, found)))


def test_prompts_of_a_file_go_first(settings, found, tmp_path):
    rows = [{"id": "a", "messages": [{"role": "user", "content": "hello"}]}, {"text": "once upon"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = settings.replace(samples=SamplesConfig(every=2, path=str(tmp_path / "prompts.jsonl")))
    prompts = read_prompts(chosen, found)
    assert [prompt.id for prompt in prompts] == ["a", 1] and texts(found, prompts)[1] == "once upon"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshConfig(context=2)}, r"samples.every=2 needs a mesh .* mesh.context=2"),
        ({"samples": SamplesConfig(every=2, max_new_tokens=10**6)}, r"samples.max_new_tokens=1000000 .* lower it"),
    ],
)
def test_what_cannot_be_sampled_is_named_before_the_run(settings, found, changes, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(settings.replace(**changes), found)


def test_without_conversations_there_are_no_prompts(settings, found):
    with pytest.raises(ValueError, match=r"needs prompts: give a file with --samples.path"):
        read_prompts(settings, found._replace(validation=None))
    assert read_prompts(settings.replace(samples=SamplesConfig()), found) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"every": 0}, r"samples.every=0"), ({"every": 1, "count": 0}, r"samples.count=0"),
     ({"path": "x.jsonl"}, r"samples.path='x.jsonl' is never used; .* --samples.every N")],
)  # fmt: skip
def test_wrong_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplesConfig(**fields)


def test_a_mesh_answers_as_one_device_does(settings, found, tmp_path):
    answers = []
    for axes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        sharded = settings.replace(mesh=MeshConfig(**axes))
        mesh = sharded.layout.mesh.mesh()
        workdir = tmp_path / str(mesh.size)
        workdir.mkdir()
        with jax.set_mesh(mesh):
            setup = build(sharded, found.folder, mesh)
            sample = make_sample(sharded.options.samples, setup, found, read_prompts(sharded, found), workdir)
            shown = sample(setup.state)
        rows = [json.loads(line) for line in (workdir / "samples" / "step_00000000.jsonl").read_text().splitlines()]
        assert [row["num_tokens"] for row in rows] == [5, 5, 5]
        assert all(row["prompt"] in text.text for row, text in zip(rows, shown, strict=True))
        assert [text.name for text in shown] == ["samples/0", "samples/1", "samples/2"]
        answers.append(rows)
    assert answers[0] == answers[1]
    assert make_sample(SamplesConfig(), setup, found, [], tmp_path) is None
    assert isinstance(read_prompts(settings, found)[0], Request)


@pytest.mark.slow
def test_samples_change_no_number_of_a_run(command, whole_run, inputs, tmp_path):
    workdir = tmp_path / "run"
    (tmp_path / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "What is 1 plus 1"}]}\n')
    options = (
        "--samples.every",
        "4",
        "--samples.path",
        str(tmp_path / "prompts.jsonl"),
        "--samples.max-new-tokens",
        "5",
    )
    command.run(workdir, *LORA, *options)
    assert timeless(workdir) == timeless(whole_run[0])
    files = sorted(path.name for path in (workdir / "samples").iterdir())
    assert files == ["step_00000004.jsonl", "step_00000008.jsonl", "step_00000009.jsonl"]
    adapters = [run / "export" / "adapter_model.safetensors" for run in (workdir, whole_run[0])]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
