"""The tower and its merger against transformers: pictures of odd sizes, videos, rows, inner features, the true size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.vision.patches import pack_patches
from tests.reference import GAIN
from tests.vision.mixes import make_mix

# A picture as small as can be, tall and wide ones, one larger than the grid of positions, and a video.
PARTS = [(1, 2, 2), (1, 2, 10), (1, 14, 4), (3, 4, 6), (1, 8, 8)]


def on_device(patches):
    return jax.tree.map(jnp.asarray, patches)


run = nnx.jit(Qwen35.vision_features, static_argnames="remat")


def test_features_match_transformers(pair, config):
    import torch

    reference, _, ours = pair
    mix = make_mix(config, PARTS)
    with torch.no_grad():
        want = reference.model.visual(torch.as_tensor(mix.pixels), torch.as_tensor(mix.grids)).pooler_output.numpy()
    got = run(ours, on_device(pack_patches([(mix.pixels, mix.grids)])))
    assert got.deep is None
    # Features are of order 1.
    np.testing.assert_allclose(got.main[0, : len(want)], want, rtol=0, atol=2e-6)


def test_rows_and_frames_do_not_see_each_other(pair, config):
    ours = pair[2]
    mixes = [make_mix(config, [part], seed=i) for i, part in enumerate(PARTS)]
    alone = [np.asarray(run(ours, on_device(pack_patches([mix[1:]], capacity=96))).main[0]) for mix in mixes]
    wanted = [features[: len(mix.pixels) // 4] for features, mix in zip(alone, mixes, strict=True)]
    joined = [np.concatenate([mix[i] for mix in mixes]) for i in (1, 2)]
    backwards = [np.concatenate([mix[i] for mix in mixes[::-1]]) for i in (1, 2)]
    got = run(ours, on_device(pack_patches([tuple(joined), tuple(backwards)]))).main
    count = len(joined[0]) // 4
    np.testing.assert_allclose(got[0, :count], np.concatenate(wanted), rtol=0, atol=2e-6)
    np.testing.assert_allclose(got[1, :count], np.concatenate(wanted[::-1]), rtol=0, atol=2e-6)


def test_frames_of_a_video_are_pictures(pair, config):
    ours = pair[2]
    mix = make_mix(config, [(3, 4, 6)])
    video = run(ours, on_device(pack_patches([(mix.pixels, mix.grids)]))).main
    pictures = run(ours, on_device(pack_patches([(mix.pixels, np.array([[1, 4, 6]] * 3))]))).main
    np.testing.assert_array_equal(video, pictures)


def test_bytes_are_normalised_as_the_processor_does(pair, config):
    ours = pair[2]
    mix = make_mix(config, [(1, 4, 6)])
    pixels = np.random.default_rng(0).integers(0, 256, mix.pixels.shape).astype(np.uint8)
    normalised = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)
    got = run(ours, on_device(pack_patches([(pixels, mix.grids)]))).main
    want = run(ours, on_device(pack_patches([(normalised, mix.grids)]))).main
    np.testing.assert_allclose(got[0, :6], want[0, :6], rtol=0, atol=2e-6)


def write_tower(tower, config, folder):
    """Writes a checkpoint whose vision tensors are those of a tower of torch."""
    create_checkpoint(config, folder, dtype="float32")
    tensors = load_file(folder / "model.safetensors")
    ours = {f"model.visual.{name}": value.numpy() for name, value in tower.state_dict().items()}
    assert ours.keys() == {name for name in tensors if ".visual." in name}
    save_file(tensors | ours, folder / "model.safetensors")


def randomised(tower):
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for weight in tower.parameters():
            weight.normal_(0, 0.2 if weight.ndim == 1 else GAIN * weight.shape[-1] ** -0.5)
    return tower.float().eval()


@pytest.mark.parametrize("indexes", [(0, 2), (1, 2, 3)])
def test_inner_features_match_qwen3_vl(config, tmp_path, indexes):
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    vision = dataclasses.replace(config.vision, depth=4, deepstack_visual_indexes=indexes)
    tower = randomised(Qwen3VLVisionModel(Qwen3VLVisionConfig(**dataclasses.asdict(vision))))
    deep_config = dataclasses.replace(config, vision=vision)
    write_tower(tower, deep_config, tmp_path / "base")
    mix = make_mix(config, PARTS)
    with torch.no_grad():
        want = tower(torch.as_tensor(mix.pixels), torch.as_tensor(mix.grids))
    ours = load(tmp_path / "base", "float32")
    got = run(ours, on_device(pack_patches([(mix.pixels, mix.grids)])))
    count = len(mix.pixels) // 4
    np.testing.assert_allclose(got.main[0, :count], want.pooler_output.numpy(), rtol=0, atol=5e-6)
    assert len(got.deep) == len(want.deepstack_features) == len(indexes)
    for mine, theirs in zip(got.deep, want.deepstack_features, strict=True):
        np.testing.assert_allclose(mine[0, :count], theirs.numpy(), rtol=0, atol=5e-6)


@pytest.mark.slow
def test_the_tower_of_the_2b_matches_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    tiny = PRESETS["tiny"]
    text = dataclasses.replace(tiny.text, hidden_size=2048)
    config = dataclasses.replace(tiny, text=text, vision=PRESETS["2b"].vision)
    tower = randomised(Qwen3_5VisionModel(Qwen3_5VisionConfig(**dataclasses.asdict(config.vision))))
    write_tower(tower, config, tmp_path / "base")
    mix = make_mix(config, [(1, 6, 34), (2, 14, 10), (1, 2, 2)])
    with torch.no_grad():
        want = tower(torch.as_tensor(mix.pixels), torch.as_tensor(mix.grids)).pooler_output.numpy()
    got = run(load(tmp_path / "base", "float32"), on_device(pack_patches([(mix.pixels, mix.grids)]))).main
    # 24 blocks of float32 in another order of summation.
    np.testing.assert_allclose(got[0, : len(want)], want, rtol=0, atol=1e-3 * np.abs(want).max())
