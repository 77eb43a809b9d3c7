"""The run file with a loss of one's own, as docs/library.md shows it: its option, its numbers, its run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.command import config_from_command_line
from tests.commands import fenced_blocks
from tests.conftest import REPO
from tests.train.launching import timeless
from train.config import TrainConfig


@pytest.fixture
def run_file(tmp_path):
    page = (REPO / "docs" / "library.md").read_text(encoding="utf-8")
    (block,) = [block for block in fenced_blocks(page, "python") if "def config()" in block]
    path = tmp_path / "documents_alike.py"
    path.write_text(block)
    return str(path)


def test_its_fields_are_options_and_its_terms_add_up(run_file, model, host_batch):
    config = config_from_command_line([run_file, "--scale", "0.5"], TrainConfig, program="x")
    objective = config.recipe.objective
    assert type(objective).__name__ == "DocumentsAlike" and objective.scale == 0.5
    assert dataclasses.asdict(objective)["kind"] == "documents_alike"
    made = objective.make(loss_chunk=8, remat="none")
    assert made.weights == {"document_loss": 0.5}

    batch = {name: jnp.asarray(value) for name, value in host_batch.items()}
    sums, counts = made.sums(model, batch, None), made.counts(batch)
    log_probs = np.asarray(jax.nn.log_softmax(model.logits(batch["input_ids"], batch["segment_ids"])))
    losses = []
    for row, (ids, segments, trained) in enumerate(zip(*host_batch.values(), strict=True)):
        for document in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == document)
            targets = [place for place in places[1:] if trained[place]]
            if targets:
                losses.append(np.mean([-log_probs[row, place - 1, ids[place]] for place in targets]))
    assert counts["document_loss"] == pytest.approx(len(losses), rel=1e-5)
    assert sums["document_loss"] == pytest.approx(np.sum(losses), rel=1e-4)


@pytest.mark.slow
def test_it_trains(command, run_file, tmp_path):
    command.run(tmp_path / "run", "--steps", "12", "--data.sequence-length", "64", config=run_file)
    entries = timeless(tmp_path / "run")
    assert len(entries) == 12 and "loss" not in entries[0]
    assert entries[-1]["document_loss"] < entries[0]["document_loss"]
    assert 1 < entries[0]["tokens"] < 60  # documents
