"""The one way from a named model to a loaded one."""

import inspect

import pytest

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
    assert seen == [((tmp_path, "float32", "mesh", "adapter"), {"param_dtype": "bfloat16"})]
