"""Training with images: packed is as alone, the split changes nothing, and a frozen tower stays as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import sft_vision_2b
from qwen35_jax.hf.load import load
from qwen35_jax.planning.hlo import Costs
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import make_mesh, named_sharding
from tests.train.vision_inputs import OBJECTIVE, VISION, recipe, write_inputs
from train.batch import put_batch
from train.config import MtpLossConfig, Supervised, TrainConfig
from train.data.pipeline import make_batches
from train.data.vision import VisionReader
from train.plan import _kernel_flops, abstract_setup
from train.setup import batch_fields
from train.state import Frozen, split_model
from train.step import make_gradients
from train.work import flops_per_token


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def model(inputs):
    with jax.set_mesh(make_mesh()):
        model = load(inputs / "base", "float32")
        graphdef, state = nnx.split(model)
        rng = np.random.default_rng(0)
        # Larger weights than the reference's initial ones, so that no gradient is lost in rounding.
        state = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), state)
        return nnx.merge(graphdef, state)


@pytest.fixture(scope="module")
def batches(inputs):
    """Makes the first batch of so many sequences."""
    tokenizer = Tokenizer.from_pretrained(inputs / "base")

    def first(sequences, **settings):
        config = dataclasses.replace(recipe(inputs).data, sequences_per_batch=sequences, epochs=1, **settings)
        return next(
            make_batches(
                config, tokenizer, None, None, VisionReader.from_pretrained(inputs / "base", VISION, tokenizer)
            )
        )

    return first


def alone(batch):
    """Gives each document of a batch a sequence of its own."""
    found = []
    for row, segments in enumerate(batch["segment_ids"]):
        frames_before = 0
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            own = {name: np.zeros_like(array[0]) for name, array in batch.items()}
            for name in ("input_ids", "trained", "positions"):
                own[name][: mine.sum()] = batch[name][row, mine]
            own["segment_ids"][: mine.sum()] = 1
            patches = 4 * int((own["positions"][: mine.sum()] >= 0).all() and pads_of(batch, row, mine))
            there = slice(frames_before, frames_before + patches)
            for name in ("pixels", "frames", "places"):
                own[name][:patches] = batch[name][row, there]
            frames_before += patches
            found.append(own)
    return {name: np.stack([each[name] for each in found]) for name in batch}


def pads_of(batch, row, mine):
    ids = batch["input_ids"][row, mine]
    return int((ids == alone.pad).sum())


@pytest.fixture(scope="module")
def gradients(model, inputs):
    """Computes the terms, divided by their counts, and the gradients of every parameter, those of the tower too."""
    alone.pad = model.config.image_token_id
    words = ("attention", "deltanet", "mlp", "embed", "mtp", "tower", "merger")
    graphdef, params, rest = split_model(model, adapters=False, train_mtp=True, train=words)
    fields = batch_fields(recipe(inputs), model.config)
    computed = jax.jit(make_gradients(graphdef, OBJECTIVE.make(loss_chunk=40, remat="block"), seed=0, dropout=False))

    def gradients(batch, accumulation=1, **axes):
        mesh = make_mesh(**axes)
        with jax.set_mesh(mesh):
            own, others = (on_mesh(state, mesh) for state in (params, rest))
            placed = put_batch(batch, accumulation=accumulation, mesh=mesh, fields=fields)
            grads, sums, counts = jax.device_get(computed(own, Frozen(others), placed, jnp.int32(0)))
        return {name: sums[name] / counts[name] for name in sums}, grads

    return gradients


def on_mesh(state, mesh):
    return jax.tree.map(
        lambda variable: variable.replace(jax.device_put(variable[...], named_sharding(variable, mesh))),
        state,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def assert_close(got, want):
    for name in want[0]:
        np.testing.assert_allclose(got[0][name], want[0][name], rtol=1e-5)
    flat = jax.tree.leaves(want[1])
    total = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in flat))
    for a, b in zip(jax.tree.leaves(got[1]), flat, strict=True):
        # Relative for each parameter; sums in another order differ in the last digits of float32.
        assert np.linalg.norm(a - b) <= 1e-4 * max(np.linalg.norm(b), 1e-3 * total)


def test_packed_documents_are_as_alone(batches, gradients):
    packed = batches(2)
    single = alone(packed)
    assert len(single["input_ids"]) > 4 and (single["frames"].max(1) > 0).sum() > 2
    found = gradients(packed)
    assert_close(found, gradients(single))
    for name in ("patch_embed", "merger"):
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1]["vision"][name]))


def test_two_micro_batches_are_as_one(batches, gradients):
    batch = batches(4)
    assert_close(gradients(batch, accumulation=2), gradients(batch))


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2}, {"fsdp": 2, "context": 2}])
def test_four_devices_are_as_one(axes, batches, gradients):
    batch = batches(4)
    assert_close(gradients(batch, **axes), gradients(batch))


def test_other_images_give_another_loss(batches, gradients):
    batch = batches(2)
    inverted = batch | {"pixels": 255 - batch["pixels"]}
    assert abs(gradients(inverted)[0]["loss"] - gradients(batch)[0]["loss"]) > 1e-4


@pytest.mark.parametrize("gradient", ["detach_trunk", "head_only"])
def test_the_mtp_loss_reaches_no_tower(gradient, model, inputs, batches):
    words = ("embed", "mtp", "tower", "merger")
    graphdef, params, rest = split_model(model, adapters=False, train_mtp=True, train=words)
    objective = Supervised(MtpLossConfig(weight=1.0, gradient=gradient)).make(loss_chunk=40, remat="none")
    objective = objective._replace(weights={"loss": 0.0, "mtp_loss": 1.0})
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        placed = put_batch(batches(2), accumulation=1, mesh=mesh, fields=batch_fields(recipe(inputs), model.config))
        computed = jax.jit(make_gradients(graphdef, objective, seed=0, dropout=False))
        grads, *_ = jax.device_get(computed(params, Frozen(rest), placed, jnp.int32(0)))
    reached = {name for name in grads if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads[name]))}
    assert reached == ({"mtp", "embed_tokens"} if gradient == "detach_trunk" else {"mtp"})


def test_a_plan_compiles_for_the_patches_of_a_batch(inputs, model, batches):
    settings = TrainConfig(recipe(inputs, accumulation=2))
    mesh = make_mesh()
    setup = abstract_setup(settings, model.config, mesh)
    put = put_batch(batches(2), accumulation=2, mesh=mesh, fields=batch_fields(settings.recipe, model.config))
    assert {name: (each.shape, each.dtype, each.sharding) for name, each in setup.batch.items()} == {
        name: (each.shape, each.dtype, each.sharding) for name, each in put.items()
    }
    assert not any(path[0] == "vision" for path, _ in nnx.to_flat_state(setup.state.params))


def test_the_work_of_the_tower_counts(inputs, model):
    frozen, trained = (
        flops_per_token(recipe(inputs, train=words), model.config) for words in (("all",), ("all", "tower", "merger"))
    )
    text = recipe(inputs, data=dataclasses.replace(recipe(inputs).data, vision=None))
    without = flops_per_token(text, model.config)
    assert trained - without == pytest.approx(3 * (frozen - without)) and frozen > without


@pytest.mark.parametrize(
    ("train", "passes"), [(("all",), {"fwd": 1}), (("all", "tower"), {"fwd": 2, "dq": 1, "dkv": 1})]
)
def test_the_kernels_of_the_tower_are_told_from_those_of_the_decoder(train, passes):
    """24 blocks, each with a kernel for small and one for large images, of which a row of patches takes one."""
    frozen, model = sft_vision_2b.config(), PRESETS["2b"]
    settings, text = frozen.replace(train=train), dataclasses.replace(frozen.recipe.data, vision=None)
    text = frozen.replace(data=text)
    decoder = {"splash_mha_fwd": 13, "splash_mha_dq": 7, "splash_mha_dkv": 7}
    both = decoder | {f"splash_mha_{name}": decoder[f"splash_mha_{name}"] + 48 * n for name, n in passes.items()}
    factors = {"fwd": 2, "dq": 3, "dkv": 4}
    images = sum(24 * n * factors[name] for name, n in passes.items()) * 2 * 24_576 * 4_096 * 1_024
    counted, without = (
        _kernel_flops(config, model, Costs(0, 0, 0, calls, [], ()))[0]
        for config, calls in ((settings, both), (text, decoder))
    )
    assert counted == pytest.approx(without + images, rel=1e-12)
