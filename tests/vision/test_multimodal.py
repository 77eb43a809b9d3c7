"""The whole model with images and videos: transformers' logits and gradients, documents, meshes, MTP, text alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.positions import shift_left
from qwen35_jax.sharding import make_mesh
from qwen35_jax.vision.mrope import mrope_positions
from qwen35_jax.vision.patches import pack_patches
from qwen35_jax.vision.placing import Embedded
from tests.reference import by_reference_name
from tests.vision.mixes import make_mix, torch_inputs

PARTS = [3, (1, 4, 6), 2, (3, 2, 4), (1, 2, 2), 5, (1, 10, 2), 3]
OTHER = [1, (2, 4, 4), 4]


def positions_of(config, mix, segment_ids=None):
    tokens = {"image_token": config.image_token_id, "video_token": config.video_token_id}
    return mrope_positions(mix.input_ids, mix.grids, segment_ids, **tokens)[0]


def mean_loss(model, hidden, ids, steps):
    """Mean loss of the tokens that are so many steps ahead."""
    logp = jax.nn.log_softmax(model.head_logits(hidden)[:, :-steps])
    return -jnp.mean(jnp.take_along_axis(logp, ids[:, steps:, None], -1))


def test_logits_match_transformers(pair, config):
    import torch

    reference, _, ours = pair
    mix = make_mix(config, PARTS)
    with torch.no_grad():
        want = reference(**torch_inputs(config, mix)).logits.numpy()
    got = ours.logits(mix.input_ids, pixels=mix.pixels, grids=mix.grids)
    # Logits are of order 1; four layers and three blocks of float32 in another order of summation.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert np.abs(ours.logits(mix.input_ids) - want).max() > 0.1


def test_gradients_of_every_parameter_match_autograd(pair, config):
    import torch

    reference, _, ours = pair
    mix = make_mix(config, PARTS)
    reference.zero_grad(set_to_none=True)
    reference(**torch_inputs(config, mix), labels=torch.as_tensor(mix.input_ids)).loss.backward()
    want = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}

    graphdef, state = nnx.split(ours)
    ids, positions = jnp.asarray(mix.input_ids), jnp.asarray(positions_of(config, mix))
    patches = jax.tree.map(jnp.asarray, pack_patches([(mix.pixels, mix.grids)]))

    def loss(state):
        model = nnx.merge(graphdef, state, copy=True)
        embedded = model.embed(ids, model.vision_features(patches, remat="block"))
        hidden, _ = model.forward(ids, None, positions, embedded=embedded, remat="block")
        return mean_loss(model, hidden, ids, 1)

    grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(state))
    got = by_reference_name({path: leaf[...] for path, leaf in grads if path[0] != "mtp"}, config.text.period)
    assert got.keys() == want.keys() and any("visual" in name for name in got)
    for name, gradient in want.items():
        if name.endswith("attn.qkv.bias"):  # A bias of all keys moves no score, so its gradient is rounding.
            width = config.vision.hidden_size
            got[name], gradient = (np.delete(x, np.s_[width : 2 * width]) for x in (got[name], gradient))
        distance = np.linalg.norm(got[name] - gradient) / np.linalg.norm(gradient)
        assert distance < 1e-4, f"{name}: {distance:.2e}"


@pytest.fixture(scope="module")
def packed(config):
    """Two documents with images in one row, padding around them, and each of them alone."""
    first, second = make_mix(config, PARTS, seed=1), make_mix(config, OTHER, seed=2)
    ids = [mix.input_ids[0] for mix in (first, second)]
    row = np.concatenate([ids[0], [7, 7], ids[1], [9]])
    segments = np.repeat([1, 0, 2, 0], [len(ids[0]), 2, len(ids[1]), 1])
    joined = [np.concatenate(both) for both in zip(first[1:], second[1:], strict=True)]
    return (first, second), row[None], segments[None], joined


@pytest.mark.parametrize("method", ["logits", "mtp_logits"])
def test_packed_equals_alone(pair, packed, method):
    alone, ids, segments, (pixels, grids) = packed
    run = functools.partial(getattr(Qwen35, method), pair[2])
    got = run(ids, segments, pixels=pixels, grids=grids)
    defined = slice(None, None if method == "logits" else -2)
    for document, mix in enumerate(alone, start=1):
        want = run(mix.input_ids, pixels=mix.pixels, grids=mix.grids)[0]
        np.testing.assert_allclose(got[segments == document][defined], want[defined], rtol=0, atol=1e-5)


def test_the_mtp_head_reads_the_vectors_of_images(pair, config):
    ours = pair[2]
    mix = make_mix(config, PARTS)
    ids, positions = jnp.asarray(mix.input_ids), jnp.asarray(positions_of(config, mix))
    features = nnx.jit(Qwen35.vision_features)(ours, jax.tree.map(jnp.asarray, pack_patches([mix[1:]])))
    embedded = ours.embed(ids, features)
    is_vision = (mix.input_ids == config.image_token_id) | (mix.input_ids == config.video_token_id)
    np.testing.assert_array_equal(embedded.values[0, is_vision[0]], features.main[0, : is_vision.sum()])
    np.testing.assert_array_equal(embedded.values[0, ~is_vision[0]], ours.embed(ids).values[0, ~is_vision[0]])

    hidden = ours.hidden_states(mix.input_ids, pixels=mix.pixels, grids=mix.grids)
    run = nnx.jit(Qwen35.mtp_forward, static_argnames="num_steps")
    first, second = run(ours, hidden, ids, None, positions, embedded=embedded, num_steps=2)
    # The second step on the first step's output, with embeddings one token further: the same head again.
    ahead = Embedded(shift_left(embedded.values, 1))
    (again,) = run(ours, first, ids, None, positions, embedded=ahead)
    np.testing.assert_allclose(again[:, :-2], second[:, :-2], rtol=0, atol=1e-6)
    got = ours.mtp_logits(mix.input_ids, pixels=mix.pixels, grids=mix.grids)
    np.testing.assert_allclose(got, ours.head_logits(first), rtol=0, atol=1e-5)
    assert np.abs(first - run(ours, hidden, ids, None, positions)[0]).max() > 0.01


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_row_of_patches_serves_neighbouring_sequences(pair, config, rows):
    """Four sequences, the second without an image, served by one row, by two, or by one each."""
    ours = pair[2]
    mixes = [make_mix(config, parts, seed=i) for i, parts in enumerate([[2, (1, 2, 4)], [8], OTHER, [1, (1, 4, 2), 5]])]
    length = max(mix.input_ids.shape[1] for mix in mixes)
    ids = jnp.asarray(
        np.concatenate([np.pad(m.input_ids, ((0, 0), (0, length - m.input_ids.shape[1]))) for m in mixes])
    )
    groups = [mixes[i * 4 // rows : (i + 1) * 4 // rows] for i in range(rows)]
    joined = [tuple(np.concatenate(part) for part in list(zip(*group, strict=True))[1:]) for group in groups] \
        if rows < 4 else [mix[1:] for mix in mixes]  # fmt: skip
    patches = jax.tree.map(jnp.asarray, pack_patches(joined))
    got = nnx.jit(lambda model, ids, patches: model.embed(ids, model.vision_features(patches)))(
        ours, ids, patches
    ).values
    for sequence, mix in zip(got, mixes, strict=True):
        alone = ours.embed(jnp.asarray(mix.input_ids))
        if len(mix.grids):
            features = nnx.jit(Qwen35.vision_features)(ours, jax.tree.map(jnp.asarray, pack_patches([mix[1:]])))
            alone = ours.embed(jnp.asarray(mix.input_ids), features)
        np.testing.assert_allclose(sequence[: mix.input_ids.shape[1]], alone.values[0], rtol=0, atol=2e-6)


def test_inner_features_are_added_after_the_first_layers(pair, config):
    """As ``_deepstack_process`` of transformers' qwen3_vl does it, in the reference's own layers."""
    import torch

    reference, _, ours = pair
    mix = make_mix(config, [2, (1, 2, 4), 3, (1, 2, 2), 2])
    is_vision = mix.input_ids == config.image_token_id
    rng = np.random.default_rng(3)
    deep = rng.normal(size=(3, *mix.input_ids.shape, config.text.hidden_size)).astype(np.float32)
    deep *= is_vision[..., None]
    layers = reference.model.language_model.layers
    hooks = [
        layer.register_forward_hook(lambda _, __, out, added=added: out + torch.as_tensor(added))
        for layer, added in zip(layers[: len(deep)], deep, strict=True)
    ]
    try:
        with torch.no_grad():
            want = reference(input_ids=torch.as_tensor(mix.input_ids)).logits.numpy()
    finally:
        for hook in hooks:
            hook.remove()
    ids = jnp.asarray(mix.input_ids)

    @nnx.jit
    def logits(model, ids, deep):
        embedded = Embedded(model.embed(ids).values, deep)
        return model.head_logits(model.forward(ids, embedded=embedded, remat="block")[0])

    np.testing.assert_allclose(logits(ours, ids, jnp.asarray(deep)), want, rtol=0, atol=1e-4)
    assert np.abs(ours.logits(ids) - want).max() > 0.1


MESHES = [
    {"data": 2, "fsdp": 4},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"context": 4, "tensor": 2},
]


def loss_and_gradients(folder, config, mesh):
    """The losses of both heads for eight sequences, and their gradients, under a mesh."""
    with jax.set_mesh(mesh):
        model = load(folder, "float32", mesh)
        graphdef, state = nnx.split(model)
        parts = [[2, (1, 4, 6), 6], [3, (2, 2, 4), 8], [16], [4, (1, 2, 2), 9]] * 2
        mixes = [make_mix(config, part, seed=i) for i, part in enumerate(parts)]
        ids = np.concatenate([np.pad(mix.input_ids, ((0, 0), (0, 24 - mix.input_ids.shape[1]))) for mix in mixes])
        positions = positions_of(
            config, mixes[0]._replace(input_ids=ids, grids=np.concatenate([m.grids for m in mixes]))
        )
        patches = jax.tree.map(jnp.asarray, pack_patches([mix[1:] for mix in mixes]))

        def loss(state, ids, positions, patches):
            model = nnx.merge(graphdef, state, copy=True)
            embedded = model.embed(ids, model.vision_features(patches, remat="block"))
            hidden, _ = model.forward(ids, None, positions, embedded=embedded)
            (ahead,) = model.mtp_forward(hidden, ids, None, positions, embedded=embedded)
            return mean_loss(model, hidden, ids, 1) + mean_loss(model, ahead, ids, 2)

        value, grads = jax.jit(jax.value_and_grad(loss))(state, jnp.asarray(ids), jnp.asarray(positions), patches)
        return float(value), jax.device_get(dict(nnx.to_flat_state(grads)))


@pytest.fixture(scope="module")
def initial(config, tmp_path_factory):
    """A checkpoint of initial weights: gradients of the reference's amplify a change of 1e-7 in the pixels to 4e-4."""
    return create_checkpoint(config, tmp_path_factory.mktemp("initial") / "base", dtype="float32")


@pytest.fixture(scope="module")
def on_one_device(initial, config):
    return loss_and_gradients(initial, config, make_mesh())


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_eight_devices_equal_one(initial, config, on_one_device, axes):
    value, grads = loss_and_gradients(initial, config, make_mesh(**axes))
    np.testing.assert_allclose(value, on_one_device[0], rtol=1e-5)
    total = np.sqrt(sum(np.sum(np.square(grad[...])) for grad in on_one_device[1].values()))
    for path, grad in on_one_device[1].items():
        distance = np.linalg.norm(grads[path][...] - grad[...])
        # The same float32 sums in another order; gradients that nearly cancel are measured against the whole.
        assert distance <= 2e-5 * max(np.linalg.norm(grad[...]), 1e-2 * total), (path, distance)


def test_text_compiles_no_vision_code(pair):
    """The program of a model with its tower is that of the model without."""
    ids = jnp.ones((2, 16), jnp.int32)

    def lowered(model):
        graphdef, state = nnx.split(model)

        def loss(state, ids):
            model = nnx.merge(graphdef, state, copy=True)
            hidden, _ = model.forward(ids)
            (ahead,) = model.mtp_forward(hidden, ids)
            return jnp.sum(hidden) + jnp.sum(ahead)

        return jax.jit(loss).lower(state, ids).as_text()

    whole, text = load(pair[1], "float32"), load(pair[1], "float32", vision=False)
    assert text.vision is None and whole.vision is not None
    assert lowered(text) == lowered(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": None}, "pixels and grids belong together"),
        ({"pixels": np.zeros((24, 7))}, r"pixels has shape \(24, 7\); expected \(patches, 1536\)"),
        ({"grids": [[4, 6]]}, r"grids has shape \(1, 2\) and type int64; expected"),
        ({"grids": [[1, 4, 4]]}, "there are 24 patches, but the grids make 16"),
        ({"input_ids": np.zeros((1, 4), int)}, "input_ids has 0 image and video tokens, but the patches make 6"),
    ],
)
def test_unusable_pictures_are_refused(pair, config, change, message):
    mix = make_mix(config, [1, (1, 4, 6)])
    inputs = mix._asdict() | change
    with pytest.raises(ValueError, match=message):
        pair[2].logits(**inputs)


def test_the_place_of_a_picture_needs_pixels(pair, config):
    """A pad that stands elsewhere is a token as any other, as in the reference."""
    start, image, video = config.vision_start_token_id, config.image_token_id, config.video_token_id
    for pad in (image, video):
        with pytest.raises(ValueError, match=f"input_ids has the place of an image .* .token {start}, then {pad}"):
            pair[2].hidden_states([[1, 2, 3, 4], [5, start, pad, pad]])
    assert pair[2].hidden_states([[image, start, 3, video]]).shape == (1, 4, config.text.hidden_size)


def test_a_model_without_a_tower_refuses_pictures(pair, config):
    text = load(pair[1], "float32", vision=False)
    mix = make_mix(config, [1, (1, 2, 2)])
    with pytest.raises(ValueError, match="model without a vision tower"):
        text.logits(**mix._asdict())
    with pytest.raises(ValueError, match="this model has no vision tower"):
        text.vision_features(pack_patches([mix[1:]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only 'gelu_pytorch_tanh'"),
        ({"num_heads": 5}, "hidden_size=48, which must be a multiple of 4 x num_heads=20"),
        ({"num_position_embeddings": 35}, "num_position_embeddings=35; they lie on a square grid"),
        ({"deepstack_visual_indexes": (2, 1)}, r"deepstack_visual_indexes=\[2, 1\]; they must be blocks below depth=3"),
        ({"out_hidden_size": 32}, "out_hidden_size=32, but the decoder's hidden_size is 64"),
    ],
)
def test_unusable_settings_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, vision=dataclasses.replace(config.vision, **change))
