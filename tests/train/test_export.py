"""What a chat fine-tune becomes elsewhere: it stops by itself in transformers and peft, with the text that we give."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.cli import main as qwen35
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.tokenizer import END_OF_TEXT, END_OF_TURN
from tests.train.conftest import small_config
from tests.train.launching import Command

# A question for each mode; what is learnt for it begins where the prompt ends.
QUESTIONS = {False: "What is 2 plus 3?", True: "What is 3 plus 3?"}
ANSWERS = {False: "It is 5.", True: "3 plus 3\n</think>\n\nIt is 6."}
CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM")


@pytest.fixture(scope="module")
def work(compiled, tmp_path_factory):
    """A folder with a Base-like checkpoint, ``base``, and a LoRA run on it, ``run``, that has learnt two answers."""
    folder = tmp_path_factory.mktemp("work")
    build_tiny_tokenizer([*QUESTIONS.values(), *ANSWERS.values()] * 4, folder / "tokenizer", vocab_size=400)
    settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": END_OF_TEXT}))
    config = small_config()
    end = Tokenizer.from_pretrained(folder / "tokenizer").token_id(END_OF_TEXT)
    # Large weights at the start: an adapter can learn two answers by heart.
    text = dataclasses.replace(config.text, initializer_range=0.8, eos_token_id=end)
    create_checkpoint(
        dataclasses.replace(config, text=text), folder / "base", dtype="float32", tokenizer_from=folder / "tokenizer"
    )
    plain = {"role": "assistant", "content": "It is 5."}
    thoughtful = {"role": "assistant", "reasoning_content": "3 plus 3", "content": "It is 6."}
    rows = [
        {"messages": [{"role": "user", "content": QUESTIONS[mode]}, reply]}
        for mode, reply in ((False, plain), (True, thoughtful))
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    options = ("--steps", "120", "--data.sequence-length", "64", "--optim.learning-rate", "1e-2")
    Command(folder, compiled).run(folder / "run", *options)
    return folder


@pytest.fixture(scope="module")
def merged(work):
    arguments = ["--model", work / "base", "--adapter", work / "run" / "export", "--out", work / "merged"]
    qwen35(["merge", *map(str, arguments)])
    return work / "merged"


@pytest.fixture(scope="module")
def adapters(work):
    """The adapter as ``qwen35 export`` writes it for either class."""
    for name in CLASSES:
        qwen35(["export", str(work / "run"), "--out", str(work / name), "--auto-class", name])
    return {name: work / name for name in CLASSES}


@pytest.fixture(scope="module")
def ours(work):
    """The text that our engine generates, greedily, with the adapter as training exported it."""
    tokenizer = Tokenizer.from_pretrained(work / "base")
    engine = Engine(load(work / "base", "float32", adapter=work / "run" / "export"), tokenizer)
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": question}], enable_thinking=mode)
        for mode, question in QUESTIONS.items()
    ]
    completions = engine.generate(prompts, sampling=SamplingParams(), max_new_tokens=20)
    assert [each.finish_reason for each in completions] == ["stop", "stop"]
    texts = (tokenizer.decode(each.token_ids, skip_special_tokens=False) for each in completions)
    return dict(zip(QUESTIONS, (text.removesuffix(END_OF_TURN) for text in texts), strict=True))


def _assert_stops(model, tokenizer, ours):
    """Generates with default arguments, and greedily, and compares with ours.

    By default 20 tokens are generated at most. The files make transformers sample at temperature 1. What was learnt by
    heart has a probability within 1e-2 of 1, so that with this seed the sampled text is the greedy one.
    """
    import torch

    for mode, question in QUESTIONS.items():
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=mode, return_dict=True, return_tensors="pt"
        )
        for settings in ({}, {"do_sample": False}):
            torch.manual_seed(0)
            [ids] = model.generate(**inputs, **settings).tolist()
            new = ids[inputs["input_ids"].shape[1] :]
            assert tokenizer.decode(new) == ours[mode] + END_OF_TURN
    assert ours == ANSWERS


@pytest.mark.parametrize("name", CLASSES)
def test_a_merged_model_stops_in_transformers(merged, ours, name):
    transformers = pytest.importorskip("transformers", reason="generates with transformers")
    model = getattr(transformers, name).from_pretrained(merged, dtype="float32")
    _assert_stops(model, transformers.AutoTokenizer.from_pretrained(merged), ours)


# Each way and each class once; the other pairs take long and show the same.
@pytest.mark.parametrize(
    ("way", "name"),
    [
        pytest.param(way, name, id=f"{package}-{name}", marks=[pytest.mark.soak] * (way != CLASSES.index(name)))
        for way, package in enumerate(("peft", "transformers"))
        for name in CLASSES
    ],
)
def test_the_code_of_the_card_loads_an_adapter_that_stops(adapters, ours, name, way, monkeypatch):
    for package in ("transformers", "peft"):
        pytest.importorskip(package, reason="runs what the model card shows")
    monkeypatch.chdir(adapters[name])
    code = re.findall(r"```python\n(.*?)```", (adapters[name] / "README.md").read_text(), flags=re.DOTALL)
    assert len(code) == 2
    names: dict = {}
    exec(code[way], names)
    _assert_stops(names["model"].float(), names["tokenizer"], ours)


def test_peft_goes_by_the_base_alone(work, adapters, ours, tmp_path):
    """A base that names both ends, as that of the quickstart does, needs no argument; one that does not runs on."""
    transformers = pytest.importorskip("transformers", reason="generates with transformers")
    peft = pytest.importorskip("peft", reason="generates with peft")
    base = shutil.copytree(work / "base", tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapters[CLASSES[0]])

    def tuned():
        model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype="float32")
        return peft.PeftModel.from_pretrained(model, adapters[CLASSES[0]])

    with pytest.raises(AssertionError):
        _assert_stops(tuned(), tokenizer, ours)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TURN, END_OF_TEXT)]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": ends[1]}))
    _assert_stops(tuned(), tokenizer, ours)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_what_serving_engines_read(merged, adapters, kind):
    """vLLM: eos_token of the tokenizer, and generation_config. SGLang: eos_token_id of config.json besides.

    Both take the sampling from generation_config. From an adapter's folder they take the tokenizer.
    """
    transformers = pytest.importorskip("transformers", reason="vLLM and SGLang read the files with transformers")
    folder = merged if kind == "merged" else adapters[CLASSES[0]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TURN, END_OF_TEXT)]
    settings = transformers.GenerationConfig.from_pretrained(folder).to_diff_dict()
    assert tokenizer.eos_token_id == ends[0] and tokenizer.pad_token_id == ends[1]
    assert settings["eos_token_id"] == ends and settings["pad_token_id"] == ends[1]
    # This template begins without thinking, and the card advises to sample from the 20 best then.
    assert settings["do_sample"] is True and settings["top_k"] == 20
    assert json.loads((folder / "generation_config.json").read_text())["top_p"] == 1.0
    if kind == "merged":
        config = transformers.AutoConfig.from_pretrained(folder)
        assert config.eos_token_id == config.get_text_config().eos_token_id == ends[0]
    else:
        assert not (folder / "config.json").exists()


def test_a_merged_export_is_the_merged_adapter(work, merged):
    qwen35(["export", str(work / "run"), "--out", str(work / "exported"), "--merged"])
    names = {path.name for path in merged.iterdir()}
    assert names == {path.name for path in (work / "exported").iterdir()}
    for name in names:
        assert (merged / name).read_bytes() == (work / "exported" / name).read_bytes(), name
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (merged / name).read_bytes() == (work / "base" / name).read_bytes()


def test_the_adapters_are_the_same_in_other_words(work, adapters):
    ids = np.arange(20)[None]
    logits = [load(work / "base", "float32", adapter=folder).logits(ids) for folder in adapters.values()]
    np.testing.assert_array_equal(*logits)
    assert (adapters[CLASSES[0]] / "adapter_config.json").read_bytes() == (
        work / "run" / "export" / "adapter_config.json"
    ).read_bytes()


def test_the_card_says_what_was_trained(work):
    card = (work / "run" / "export" / "README.md").read_text()
    last = json.loads((work / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for wanted in (
        f'base_model: "{work / "base"}"',
        'library_name: "peft"',
        f"| data | {work / 'train.jsonl'} |",
        "| rows | 16 |",
        "| steps | 120 of 120 |",
        "| lora.targets | attention, deltanet, mlp, mtp |",
        "| optim.learning_rate | 0.01 |",
        f"| loss | {last['loss']:.4g} |",
        f"| mtp_loss | {last['mtp_loss']:.4g} |",
    ):
        assert wanted in card
    assert "tokens_per_second" not in card


def test_every_file_has_the_mode_that_the_umask_leaves(work, merged, adapters):
    mask = os.umask(0)
    os.umask(mask)
    for folder in (merged, *adapters.values(), work / "run", work / "base"):
        for path in (folder, *folder.rglob("*")):
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o777 == wanted, f"{path} has {oct(path.stat().st_mode)}"
