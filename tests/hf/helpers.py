"""What the tests of checkpoints and adapters share."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.hf.create import create_checkpoint
from tests.reference import reference_model, tiny_config

IDS = np.random.default_rng(0).integers(0, 512, (2, 13))


def small_config(tied=True):
    """Two periods of one DeltaNet and one attention layer: half as much to compile as the tiny preset."""
    return tiny_config(num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2, tied=tied)


def write_reference(folder, config):
    """Writes a float32 checkpoint whose decoder and vision tower are the reference's; returns the reference."""
    create_checkpoint(config, folder, seed=3, dtype="float32")
    model = reference_model(config, seed=3)
    file = folder / "model.safetensors"
    theirs = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = load_file(file)
    # Norms of the MTP head away from zero too, and its matrices large enough to matter.
    ours = {name: value * 5 + 0.1 for name, value in tensors.items() if name.startswith("mtp.")}
    save_file({name: (theirs | ours)[name] for name in tensors}, file)
    return model


def torch_logits(model, ids=IDS):
    """Runs a torch model on token ids and returns float32 logits."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits.float().numpy()


def assert_logits_agree(got, want):
    """Compares logits of order 1, computed in float32 on both sides: the differences seen are 2e-6."""
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def assert_same_parameters(ours, theirs):
    """Compares all parameters of two models, adapters included, bit for bit."""
    first, second = (dict(nnx.to_flat_state(nnx.state(model, nnx.Param))) for model in (ours, theirs))
    assert first.keys() == second.keys()
    for path, param in first.items():
        np.testing.assert_array_equal(param[...], second[path][...], err_msg=str(path))


def randomize(model, filters, scale):
    """Adds noise to the parameters that pass the filter."""
    rng = np.random.default_rng(0)
    for _, param in nnx.to_flat_state(nnx.state(model, filters)):
        noise = rng.standard_normal(param.shape, np.float32) * np.float32(scale)
        param.set_value(jnp.asarray(np.asarray(param[...]) + noise))


def files_of(folder):
    """Returns the content of every file, by its path in the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
