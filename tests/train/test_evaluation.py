"""Validation losses: those of the model's own logits, and the same on every mesh."""

from functools import partial

import jax
import numpy as np
import pytest

from configs.tiny_sft import config as tiny
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import MeshConfig
from train.batch import put_batch
from train.config import DataConfig, ModelSource, MtpLossConfig, Supervised
from train.data.documents import Documents
from train.data.validation import read_validation
from train.evaluation import make_evaluation, validate
from train.run import build

SEQUENCES = 8
MESHES = {
    "data": {"data": 8},
    "fsdp, context, tensor": {"fsdp": 2, "context": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def settings(inputs):
    data = DataConfig(str(inputs / "train.jsonl"), sequence_length=64, sequences_per_batch=SEQUENCES, eval_fraction=0.4)
    return tiny().replace(
        model=ModelSource(str(inputs / "base"), dtype="float32"), data=data, lora=None,
        objective=Supervised(MtpLossConfig(num_steps=2)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def batches(settings, inputs):
    """Three batches, the last of which is mostly empty."""
    data, tokenizer = settings.recipe.data, Tokenizer.from_pretrained(inputs / "base")
    batches = read_validation(data, tokenizer, range(SEQUENCES), Documents(data, tokenizer)).batches
    assert len(batches) >= 2 and not batches[-1]["segment_ids"][-1].any()
    return batches


def losses(settings, inputs, batches, *, accumulation=1, **axes):
    settings = settings.replace(mesh=MeshConfig(**axes), accumulation=accumulation)
    mesh = settings.layout.mesh.mesh()
    with jax.set_mesh(mesh):
        setup = build(settings, inputs / "base", mesh)
        put = partial(put_batch, accumulation=accumulation, mesh=mesh)
        return setup, validate(setup, setup.state, batches, put)


@pytest.fixture(scope="module")
def single(settings, inputs, batches):
    return losses(settings, inputs, batches)


def test_losses_are_those_of_the_logits_over_all_targets(single, batches):
    setup, figures = single
    model = setup.model(setup.state)
    terms = {"loss": (model.logits, 1), "mtp_loss": (model.mtp_logits, 2)}
    for name, (logits_of, offset) in terms.items():
        sums = counts = 0
        for batch in batches:
            logits = np.asarray(logits_of(batch["input_ids"], batch["segment_ids"]), np.float64)[:, :-offset]
            ids, segments, trained = (batch[key][:, offset:] for key in ("input_ids", "segment_ids", "trained"))
            targets = trained & (segments == batch["segment_ids"][:, :-offset])
            chosen = np.take_along_axis(logits, ids[..., None], -1)[..., 0]
            surprise = np.log(np.exp(logits).sum(-1)) - chosen
            sums, counts = sums + surprise[targets].sum(), counts + targets.sum()
        # float32 against float64.
        assert figures[name] == pytest.approx(sums / counts, rel=1e-6), name
        if name == "loss":
            assert figures["tokens"] == counts
    assert figures.keys() == {"loss", "mtp_loss", "mtp_loss_2", "tokens"}


@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
def test_a_mesh_of_eight_gives_the_losses_of_one_device(single, settings, inputs, batches, axes):
    figures = losses(settings, inputs, batches, **axes)[1]
    for name, value in single[1].items():
        assert abs(figures[name] - value) < 1e-6, name


def test_micro_batches_change_nothing(single, settings, inputs, batches):
    figures = losses(settings, inputs, batches, accumulation=4)[1]
    assert figures == pytest.approx(single[1], abs=1e-6)


def test_figures_of_the_run_file_stand_beside_the_losses_under_names_of_their_own(single, settings, batches):
    setup, _ = single

    class Inputs:
        tokenizer = "tokenizer"
        validation = held_out = None

    evaluate = make_evaluation(settings.replace(evaluate=lambda model, _: {"x": 1}), setup, Inputs, put=None)
    assert evaluate(setup.state) == {"x": 1}
    assert make_evaluation(settings, setup, Inputs, put=None) is None
    Inputs.validation = type("Validation", (), {"batches": batches[:1]})
    put = partial(put_batch, accumulation=1, mesh=settings.layout.mesh.mesh())
    evaluate = make_evaluation(settings.replace(evaluate=lambda model, _: {"loss": 1}), setup, Inputs, put)
    mesh = settings.layout.mesh.mesh()
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="returned 'loss', which is a figure of the validation data"),
    ):
        evaluate(setup.state)
