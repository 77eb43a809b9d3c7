"""Random checkpoints: the layout of the published files, whatever the size."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoImageProcessor

from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.names import tensor_table
from qwen35_jax.hf.safetensors import header_bytes
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Processor
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from tests.conftest import PUBLISHED


@pytest.mark.parametrize(("size", "file_bytes"), [("2b", 4_548_221_488), ("0.8b", 1_746_942_600)])
def test_file_size_of_the_published_shards(size, file_bytes):
    specs = sorted(tensor_table(PRESETS[size]).values(), key=lambda spec: (spec.dtype != "F32", spec.name))
    header = header_bytes((spec.name, spec.dtype, spec.shape) for spec in specs)
    data = sum(int(np.prod(spec.shape)) * (4 if spec.dtype == "F32" else 2) for spec in specs)
    assert len(header) + data == file_bytes


def test_initial_values(tmp_path):
    create_checkpoint(PRESETS["tiny"], tmp_path / "made", seed=1, dtype="float32")
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    assert tensors.keys() == tensor_table(PRESETS["tiny"]).keys()
    layer = "model.language_model.layers.0."
    assert np.all(tensors[layer + "input_layernorm.weight"] == 0)
    assert np.all(tensors[layer + "linear_attn.norm.weight"] == 1)
    assert np.all(tensors[layer + "linear_attn.dt_bias"] == 1)
    assert np.all(tensors["model.visual.blocks.0.norm1.weight"] == 1)
    assert np.all(tensors["model.visual.blocks.0.attn.qkv.bias"] == 0)
    assert np.all(tensors["mtp.pre_fc_norm_hidden.weight"] == 0)
    assert np.all(tensors[layer + "linear_attn.A_log"] <= np.log(16))
    embedding = tensors["model.language_model.embed_tokens.weight"]
    np.testing.assert_allclose(embedding.std(), 0.02, rtol=0.02)  # 32,768 draws: the deviation is known to 0.4 %


def test_shards_hold_the_same_tensors(tmp_path):
    config = PRESETS["tiny"]
    create_checkpoint(config, tmp_path / "single", seed=1, dtype="float32")
    create_checkpoint(config, tmp_path / "sharded", seed=1, dtype="float32", shard_bytes=500_000)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    shards = {name: load_file(tmp_path / "sharded" / name) for name in files}
    single = load_file(tmp_path / "single" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in single.values())
    for name, array in single.items():
        np.testing.assert_array_equal(shards[index["weight_map"][name]][name], array)


def test_config_and_tokenizer_files(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"")
    create_checkpoint(PRESETS["tiny"], tmp_path / "made", seed=1, tokenizer_from=source)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "video_preprocessor_config.json",
    ]
    assert ModelConfig.from_hf(tmp_path / "made") == PRESETS["tiny"]


PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


def test_the_processor_files_are_the_published_ones(tmp_path):
    made = create_checkpoint(PRESETS["tiny"], tmp_path / "made", seed=1)
    for name in PROCESSOR_FILES:
        assert (made / name).read_text() == (PUBLISHED / name).read_text()


def test_the_processor_files_fit_the_tower(official_tokenizer_dir, tmp_path, caplog):
    tower = dataclasses.replace(PRESETS["tiny"].vision, patch_size=14, spatial_merge_size=3)
    config = dataclasses.replace(PRESETS["tiny"], vision=tower)
    made = create_checkpoint(config, tmp_path / "made", seed=1, tokenizer_from=official_tokenizer_dir)
    processor = Processor.from_pretrained(made)
    assert processor.image == ImageSettings(patch_size=14, merge_size=3)
    assert processor.video == VideoSettings(patch_size=14, merge_size=3)
    assert not caplog.text
    theirs = AutoImageProcessor.from_pretrained(made)
    assert (theirs.patch_size, theirs.merge_size, theirs.size["longest_edge"]) == (14, 3, 16_777_216)


def test_processor_files_of_the_tokenizer_stay(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / PROCESSOR_FILES[0]).write_text("{}")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "processor_config.json").write_text("{}")
    one = create_checkpoint(PRESETS["tiny"], tmp_path / "a", tokenizer_from=tmp_path / "one")
    both = create_checkpoint(PRESETS["tiny"], tmp_path / "b", tokenizer_from=tmp_path / "both")
    assert (one / PROCESSOR_FILES[0]).read_text() == "{}" and (one / PROCESSOR_FILES[1]).is_file()
    assert not any((both / name).exists() for name in PROCESSOR_FILES)
    text_only = dataclasses.replace(PRESETS["tiny"], vision=None, architecture="Qwen3_5ForCausalLM")
    text = create_checkpoint(text_only, tmp_path / "c")
    assert not any((text / name).exists() for name in PROCESSOR_FILES)


def test_wrong_input(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"full already exists and is not an empty folder"):
        create_checkpoint(PRESETS["tiny"], tmp_path / "full", seed=1)
    with pytest.raises(ValueError, match="dtype='int8'"):
        create_checkpoint(PRESETS["tiny"], tmp_path / "made", seed=1, dtype="int8")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        create_checkpoint(PRESETS["tiny"], tmp_path / "made", seed=1, tokenizer_from=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="mixture-of-experts"):
        create_checkpoint(PRESETS["35b-a3b"], tmp_path / "made", seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
