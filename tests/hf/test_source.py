"""The one way from a named model to a loaded one."""

import inspect
import json
import shutil

import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.hf import source as source_module
from qwen35_jax.hf.source import ModelSource, load_model, load_tokenizer


@pytest.mark.parametrize("function", [load_model, load_tokenizer])
def test_a_source_without_a_path_or_with_a_wrong_one_is_refused(function):
    with pytest.raises(ValueError, match=r"no model is named; give --model\.path"):
        function(ModelSource())
    with pytest.raises(FileNotFoundError, match="nowhere/at/all"):
        function(ModelSource("nowhere/at/all"))


def test_every_field_reaches_the_loader(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(source_module, "load", lambda *args, **kwargs: seen.append((args, kwargs)))
    # Unwrapped, because the run-time checks would refuse the stand-ins.
    inspect.unwrap(load_model)(ModelSource(str(tmp_path), "adapter", "float32", "bfloat16"), "mesh")
    assert seen == [((tmp_path, "float32", "mesh", "adapter"), {"param_dtype": "bfloat16", "vision": False})]


def test_an_adapter_brings_its_chat_template(reference, tmp_path):
    base = shutil.copytree(reference[0], tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    build_tiny_tokenizer(["a b"] * 4, base, vocab_size=300)
    source = ModelSource(str(base), adapter=str(adapter))
    assert load_tokenizer(source).chat_template.source == (base / "chat_template.jinja").read_text()
    build_tiny_tokenizer(["a b"] * 4, adapter, vocab_size=300)
    (adapter / "chat_template.jinja").write_text("another")
    assert load_tokenizer(source).chat_template.source == "another"
    build_tiny_tokenizer(["one two three", "12 + 34 = 46"] * 9, adapter, vocab_size=600)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["vocab_size"] = 290
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="but the model's vocab_size is 290"):
        load_tokenizer(source)
