"""Resuming with other settings: what is refused, what is warned about, what is free."""

import dataclasses
import json
import logging

import pytest

from train.config import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Options,
    Recipe,
    Source,
    Supervised,
    TrainConfig,
)
from train.record import check_resumable, make_record, write_record

CONFIG = TrainConfig(
    Recipe(ModelSource("base"), DataConfig("train.jsonl", sequence_length=64), steps=10, lora=LoraConfig()).decide(),
    options=Options(workdir="here"),
)


@pytest.fixture
def check(tmp_path):
    """Records CONFIG and checks resuming with changes to it, to the base's weights or to the data."""
    base, workdir = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    workdir.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    (base / "chat_template.jinja").write_text("a")
    write_record(workdir, make_record(CONFIG, model_folder=base, data_identity={"data": "1"}))

    def check(weights=b"weights", template="a", rows="1", validation=None, **changes):
        (base / "model.safetensors").write_bytes(weights)
        (base / "chat_template.jinja").write_text(template)
        record = make_record(
            CONFIG.replace(**changes), model_folder=base, data_identity={"data": rows},
            validation_identity=validation,
        )  # fmt: skip
        check_resumable(workdir, record)
        return lambda: write_record(workdir, record)

    return check


def test_the_same_settings_resume(check, caplog):
    check()
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": OptimConfig(learning_rate=0.5)}, r"optim.learning_rate was 0.0001, now 0.5"),
        ({"steps": 20}, "steps was 10, now 20"),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"lora": None}, "lora.rank was 16, now None"),
        ({"data": DataConfig("train.jsonl", sequence_length=32)}, "data.sequence_length was 64, now 32"),
        ({"weights": b"others"}, "model_fingerprint was"),
        ({"template": "b"}, "tokenizer.chat_template.jinja was 'ca978112ca1bbdca', now '3e23e8160039594a'"),
        ({"rows": "2"}, r"settings: the content of train\.jsonl has changed\. Give the old"),
        (
            {"rows": "2", "data": DataConfig("x.jsonl", sequence_length=64)},
            r"settings: the data were train\.jsonl, now x\.jsonl with another content\. Give the old",
        ),
        (
            {"rows": "2-1", "data": DataConfig(sources=(Source("x.jsonl"), Source("y.jsonl")), sequence_length=64)},
            r"settings: the data were train\.jsonl, now x\.jsonl, y\.jsonl\. Give the old",
        ),
        ({"data": DataConfig("x.jsonl", sequence_length=64, seed=1)}, "data.seed was 0, now 1"),
    ],
)
def test_what_affects_numbers_is_refused(check, changes, message):
    with pytest.raises(ValueError, match=message):
        check(**changes)


def test_a_run_may_begin_and_cease_to_validate_but_not_on_other_data(check):
    check(validation={"data": "v"})()
    check(validation={"data": "v"})
    with pytest.raises(ValueError, match=r"settings: the content of the validation data has changed\. Give"):
        check(validation={"data": "w"})
    check()


def test_every_difference_is_named(check):
    with pytest.raises(ValueError, match="seed was 0, now 1; steps was 10, now 11"):
        check(seed=1, steps=11)


def test_what_changes_no_number_is_free(check, caplog):
    check(
        checkpoint=CheckpointConfig(every=7, keep=9),
        export=False,
        workdir="there",
        model=ModelSource("moved"),
        data=DataConfig("moved.jsonl", sequence_length=64, num_threads=9, epochs=3),
    )
    assert not caplog.records


def test_layout_is_allowed_with_a_warning(check, caplog):
    with caplog.at_level(logging.WARNING):
        check(mesh=MeshConfig(fsdp=2), loss_chunk=16, remat="none")
    assert "loss_chunk, mesh.fsdp, model.remat differs" in caplog.text


def test_a_run_at_a_constant_rate_may_go_on_longer(tmp_path, check):
    constant = OptimConfig(schedule="constant")
    record = make_record(CONFIG.replace(optim=constant), model_folder=tmp_path / "base", data_identity={})
    write_record(tmp_path / "run", record)
    longer = CONFIG.replace(optim=constant, steps=20)
    check_resumable(tmp_path / "run", make_record(longer, model_folder=tmp_path / "base", data_identity={}))


def test_a_run_whose_rate_depends_on_its_steps_names_the_way_to_go_on(check, tmp_path):
    with pytest.raises(ValueError, match=r"steps was 10, now 20.*schedule=cosine.*give --branch-from .*run@STEP and"):
        check(steps=20)
    for other in ({"seed": 1}, {"steps": 5}):
        with pytest.raises(ValueError) as caught:
            check(**other)
        assert "branch" not in str(caught.value)


def test_a_warmup_as_a_fraction_is_recorded_in_steps(tmp_path, check):
    """A longer run has a longer warmup then, so it is another run."""
    records = []
    for steps in (100, 200):
        config = CONFIG.replace(optim=OptimConfig(warmup=0.1, schedule="constant"), steps=steps)
        decided = dataclasses.replace(config, recipe=config.recipe.decide())
        records.append(make_record(decided, model_folder=tmp_path / "base", data_identity={}))
    write_record(tmp_path / "run", records[0])
    with pytest.raises(ValueError, match=r"settings: optim\.warmup was 10, now 20\. Give the old values"):
        check_resumable(tmp_path / "run", records[1])


def test_the_record_is_laid_out_by_class(tmp_path):
    record = make_record(CONFIG, model_folder=tmp_path, data_identity={"data": "1"}).to_json()
    assert set(record) == {"recipe", "layout", "options", "identity"}
    assert record["recipe"]["model"]["path"] == "base" and record["recipe"]["lora"]["rank"] == 16
    assert record["recipe"]["objective"]["kind"] == "supervised"
    assert record["layout"]["remat"] == "block" and record["options"]["workdir"] == "here"
    assert set(record["identity"]) == {"model", "tokenizer", "data", "conversations"}


@pytest.fixture
def edited(tmp_path, check):
    """Changes the written record as another version would have written it, and checks resuming."""
    path = tmp_path / "run" / "config.json"

    def edited(change, **changes):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
        check(**changes)

    return edited


def test_a_setting_that_an_older_record_lacks_counts_as_its_default(edited, caplog):
    def before_these_settings(record):
        del record["recipe"]["health"], record["recipe"]["data"]["train_on"], record["recipe"]["optim"]["clip_norm"]
        del record["recipe"]["lora"]["dropout"], record["layout"]["delta_rule"], record["options"]
        del record["identity"]["tokenizer"], record["identity"]["conversations"]

    edited(before_these_settings)
    assert not caplog.records
    with pytest.raises(
        ValueError, match=r"settings: data.train_on was 'all', now 'last'; optim.clip_norm was 1.0, now"
    ):
        edited(
            lambda record: None,
            data=DataConfig("train.jsonl", sequence_length=64, train_on="last"),
            optim=OptimConfig(clip_norm=None),
        )


def test_a_setting_that_is_gone_is_refused(edited):
    with pytest.raises(ValueError, match=r"optim\.nesterov was True, now None"):
        edited(lambda record: record["recipe"]["optim"].update(nesterov=True))


def test_another_objective_is_refused(edited):
    with pytest.raises(ValueError, match="objective was 'distillation', now 'supervised'"):
        edited(lambda record: record["recipe"]["objective"].update(kind="distillation"))


def test_names_of_flags_name_what_differs(check, caplog):
    with pytest.raises(ValueError, match=r"settings: mtp.weight was 0.1, now 0.2\. Give"):
        check(objective=Supervised(MtpLossConfig(weight=0.2)))
    check(delta_rule="associative")
    assert "model.delta-rule differs" in caplog.text


def test_a_record_of_an_earlier_version_is_one_clear_error(edited):
    def flat(record):
        record.update(record.pop("recipe"), model_fingerprint="1")
        del record["layout"], record["identity"]

    with pytest.raises(ValueError, match=r"config\.json has no identity, layout, recipe: .* earlier version") as caught:
        edited(flat)
    assert "\n" not in str(caught.value)


def test_an_unreadable_record_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        check_resumable(tmp_path, {})
