"""What is said of the data before the model is loaded."""

import logging

import pytest

from configs.tiny_sft import config as tiny_config
from train.config import DataConfig, ModelSource
from train.data.measure import measure
from train.inputs import check_inputs


def settings(inputs, **changes):
    data = DataConfig(str(inputs / "train.jsonl"), sequence_length=64, sequences_per_batch=8)
    return tiny_config().replace(model=ModelSource(str(inputs / "base"), dtype="float32"), data=data, **changes)


def test_data_that_a_run_passes_too_often_are_warned_of(inputs, mesh, caplog):
    with caplog.at_level(logging.WARNING):
        check_inputs(settings(inputs, steps=20), mesh)
        assert not caplog.records
        check_inputs(settings(inputs, steps=1000), mesh)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "steps=1,000 are about" in warning and "for 3 epochs give --steps" in warning


def test_one_row_repeated_is_warned_of(inputs, mesh, caplog, tmp_path):
    (tmp_path / "one.jsonl").write_text((inputs / "train.jsonl").read_text().splitlines()[0])
    config = settings(inputs, steps=20)
    config = config.replace(data=DataConfig(str(tmp_path / "one.jsonl"), sequence_length=64, sequences_per_batch=8))
    with caplog.at_level(logging.WARNING):
        check_inputs(config, mesh)
    assert "learn them by heart" in caplog.text


def test_the_estimate_of_epochs_is_near_what_many_batches_take(inputs, mesh):
    config = settings(inputs)
    batches = check_inputs(config, mesh).batches
    for _ in range(50):
        next(batches)
    report = batches.report()
    # The estimate knows of no padding. After 50 batches the sequences that the packer holds open are a small part.
    estimate = report["packing_efficiency"] / measure(batches.corpus, whole=False).steps_of_epoch(config.recipe.data)
    assert estimate == pytest.approx(report["epochs"] / 50, rel=0.2)
    assert batches.epoch == pytest.approx(batches.report()["epochs"])
