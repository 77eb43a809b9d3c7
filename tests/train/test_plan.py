"""Plans: memory and shapes of the compiled step, the search for a change that fits, wrong input, the tables."""

import dataclasses
import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks import plan_recipes, plan_teachers
from qwen35_jax.lora import LoraConfig
from qwen35_jax.planning.aot import compile_abstract
from qwen35_jax.planning.devices import find_device
from qwen35_jax.planning.hlo import Collective, Costs, array_shapes
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import make_mesh
from tests.conftest import REPO
from tests.train.conftest import small_config
from train import plan as planning
from train.config import DataConfig, Layout, MeshConfig, ModelSource, Recipe, TrainConfig
from train.plan import abstract_setup, make_plan, nearest_changes
from train.plan_report import Plan, Range, run_report, step_seconds, to_text
from train.sft import main

VOCABULARY = PRESETS["2b"].text.vocab_size
TOKENS, CHUNK = 48, 8

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


def settings(**changes) -> TrainConfig:
    data = DataConfig("train.jsonl", sequence_length=TOKENS, sequences_per_batch=16)
    recipe = Recipe(ModelSource("Qwen/Qwen3.5-2B-Base"), data, steps=10)
    return TrainConfig(recipe, Layout(remat="none", loss_chunk=CHUNK)).replace(**changes)


def real_vocabulary():
    small = small_config()
    return dataclasses.replace(small, text=dataclasses.replace(small.text, vocab_size=VOCABULARY))


def arrays_of_logits(text: str) -> list[tuple[int, ...]]:
    """Lists the arrays that hold logits for more tokens than a chunk has."""
    tokens = 16 * CHUNK
    shapes = [shape for _, shape in array_shapes(text) if VOCABULARY in shape]
    assert shapes, "the program must show its output head, or the test sees nothing"
    # The head itself has the vocabulary beside the width of the model, 32.
    return [shape for shape in shapes if jnp.prod(jnp.array(shape)) // VOCABULARY > max(tokens, 32)]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all weights", "adapters"])
def test_no_step_holds_the_logits_of_all_tokens(lora):
    config = settings(lora=lora)
    mesh = make_mesh()
    setup = abstract_setup(config, real_vocabulary(), mesh)
    compiled = compile_abstract(setup.step, setup.state, setup.frozen, setup.batch, mesh=mesh)
    assert arrays_of_logits(compiled.text) == []


def test_a_step_that_holds_them_would_be_found():
    config = settings()
    mesh = make_mesh()
    setup = abstract_setup(config, real_vocabulary(), mesh)

    def loss(params, frozen, input_ids):
        return jnp.sum(
            jax.nn.logsumexp(nnx.merge(setup.graphdef, params, frozen.rest, copy=True).logits(input_ids), axis=-1)
        )

    ids = jax.ShapeDtypeStruct((16, TOKENS), jnp.int32)
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(setup.state.params, setup.frozen, ids).compile().as_text()
    assert arrays_of_logits(text)


def pretend(monkeypatch, fits):
    """Replaces the compiler by a rule on settings; returns the list of settings that were tried."""
    tried = []

    def plan(config, model_config, topology, devices, teacher):
        tried.append(config)
        device = find_device(topology)
        hbm = dict.fromkeys(("weights", "adapters", "optimizer", "temporaries"), 2**30)
        hbm["peak"] = (4 if fits(config) else 20) * 2**30
        costs = Costs(1e12, 1e9, 10**6, {}, [Collective("all-gather", 3, 1e9)], ()) if fits(config) else None
        return Plan(topology, device, len(devices), hbm | {"capacity": device.hbm_bytes}, 1000, 4e12, costs)

    monkeypatch.setattr(planning, "_plan", plan)
    monkeypatch.setattr(planning, "topology_devices", lambda name: [None] * 8)
    return tried


def test_the_nearest_change_that_fits_is_searched_for(monkeypatch):
    tried = pretend(monkeypatch, lambda config: config.recipe.accumulation >= 2)
    plan = make_plan(settings(mesh=MeshConfig(data=8)), "v5e:2x4")
    assert not plan.fits and plan.limits == "memory"
    assert plan.remedy == "with --model.remat block --mesh.data 1 --mesh.fsdp 8 --accumulation 2 it does: peak 4.00 GiB"
    assert [config.layout.remat for config in tried] == ["none", "block", "block", "block"]
    assert to_text(plan, settings()).startswith(
        "DOES NOT FIT: 4.25 GiB a chip too much\nto make it fit: with --model.remat block"
    )
    assert plan.to_json()["remedy"] == plan.remedy


def test_no_change_helps(monkeypatch):
    tried = pretend(monkeypatch, lambda config: False)
    plan = make_plan(settings(mesh=MeshConfig(fsdp=8)), "v5e:2x4")
    assert plan.remedy is None and "none of the changes that were tried does" in to_text(plan, settings())
    assert len(tried) <= 1 + planning._MOST_CANDIDATES


def test_changes_keep_the_batch_and_the_numbers():
    for description, config in nearest_changes(settings(mesh=MeshConfig(data=2, fsdp=4), loss_chunk=256)):
        recipe, mesh = config.recipe, config.layout.mesh
        # As dictionaries, which compare every field.
        assert dataclasses.asdict(recipe.data) == dataclasses.asdict(settings().recipe.data), description
        assert recipe.steps == 10, description
        assert (recipe.data.sequences_per_batch // recipe.accumulation) % (mesh.data * mesh.fsdp) == 0, description


def test_a_plan_as_json_and_text(monkeypatch, tmp_path, capsys):
    pretend(monkeypatch, lambda config: True)
    target = tmp_path / "plan.json"
    run_file = "configs/full_2b_v5e8.py"
    main([run_file, "--plan", "v5e:2x4", "--plan-json", str(target), "--plan-price", "1.2"])
    report = json.loads(target.read_text())
    assert report["fits"] and report["topology"] == "v5e:2x4"
    assert set(report["hbm"]) == {"weights", "adapters", "optimizer", "temporaries", "peak", "capacity"}
    assert report["collectives"] == [{"kind": "all-gather", "count": 3, "bytes": 1e9}]
    # 1e12 FLOPs at 197e12 a second, 1e9 bytes at 819e9, and 1e9 at 200e9: the slowest binds.
    assert report["roofline_seconds"] == pytest.approx(1e12 / 197e12)
    assert report["limits"] == "compute"
    assert report["tokens_per_second"] == pytest.approx(1000 / report["roofline_seconds"])
    # The 1e6 cycles at 1.503 GHz take less than the FLOPs at their peak.
    assert report["step_seconds"]["low"] == report["roofline_seconds"]
    assert report["step_seconds"]["high"] == pytest.approx(1e6 / 1.503e9 + 1e9 / 200e9)
    assert report["run"]["steps"] == 1000
    assert report["run"]["price"]["low"] == pytest.approx(1000 * 8 * 1.2 * report["roofline_seconds"] / 3600)
    assert report["free_bytes"] == report["hbm"]["capacity"] - 4 * 2**30
    printed = capsys.readouterr().out
    assert printed.startswith("FITS: 11.75 GiB a chip stay free\n")
    assert "peak 4.00 of 15.75" in printed
    # 8 chips at 1.2 an hour for 1e9 / 197,000 seconds.
    assert "14 to 15 for a billion tokens" in printed
    with pytest.raises(SystemExit):
        main([run_file, "--plan", "v5e:2x4", "--plan-json", str(target)])
    assert "exists; name a new file" in capsys.readouterr().err


def plan_of(*, compute=1.0, hbm=0.5, ici=0.2, cycles=4.0, kernels=0.0, peak=10, temporaries=6, chips=8) -> Plan:
    """Returns a plan by its seconds on a v5e, and GiB of 15.75."""
    device = find_device("v5e")
    sent = [Collective("all-gather", 1, ici * device.ici_bytes_per_second)]
    flops = compute * device.peak_flops
    costs = Costs(flops, hbm * device.hbm_bytes_per_second, int(cycles * device.clock_hz), {}, sent, ())
    memory = {"weights": 1, "adapters": 0, "optimizer": 1, "temporaries": temporaries, "peak": peak, "capacity": 15.75}
    hbm_bytes = {name: round(gib * 2**30) for name, gib in memory.items()}
    passes = kernels * device.peak_flops
    return Plan("v5e:2x4", device, chips, hbm_bytes, 8000, flops * chips / 1.3, costs, 0.0, passes)


def test_a_step_lies_between_its_busiest_resource_and_the_compilers_estimate():
    plan = plan_of(compute=1.0, hbm=1.5, ici=0.25, cycles=4.0, kernels=0.5)
    assert plan.step_seconds == pytest.approx((1.5, 4.0 + 0.5 + 0.25))
    # The cycles alone are too many; kernels are counted at the peak.
    assert plan.likely_seconds == pytest.approx((4 / 2 + 0.5, 4 / 1.6 + 0.5))
    short = plan_of(compute=5.0)
    assert short.step_seconds == short.likely_seconds == pytest.approx((5, 5))
    assert step_seconds({"compute": 1, "hbm": 1.5, "ici": 0.25}, 4.5) == plan.step_seconds


def test_hours_and_price_are_those_of_the_run():
    config = settings().replace(steps=360)
    report = run_report(plan_of(), config, price=2.0)["run"]
    assert report["hours"] == pytest.approx({"low": 0.1, "high": 0.42})
    assert report["chip_hours"] == pytest.approx({"low": 0.8, "high": 3.36})
    assert report["price"] == pytest.approx({"low": 1.6, "high": 6.72})
    text = to_text(plan_of(), config, 2.0)
    assert "this run: 360 steps, 6.0 to 25.2 min, 0.8 to 3.4 chip-hours, 1.60 to 6.72 at 2 a chip-hour" in text
    assert "a step takes 1.00 to 4.20 s, most likely 2.00 to 2.50: 1,905 to 8,000 tokens/s, 238 to 1,000 a chip" in text
    assert "price" not in run_report(plan_of(), config)["run"]
    assert Range(1.0, 1.0).to_text() == "1"


@pytest.mark.parametrize(
    ("plan", "changes", "advice"),
    [
        ({"peak": 6, "temporaries": 4}, {"remat": "block"}, ["--model.remat save_dots: 30%", "fewer chips"]),
        ({"peak": 6, "temporaries": 4, "chips": 1}, {"remat": "none"}, []),
        ({"peak": 6, "temporaries": 4, "hbm": 0.9, "chips": 1}, {"accumulation": 4}, ["--accumulation 2: weights"]),
        ({"peak": 14, "temporaries": 10, "hbm": 0.9}, {"accumulation": 4}, []),
        ({"ici": 3.0}, {}, ["a mesh that sends less"]),
    ],
)
def test_what_would_make_it_cheaper(plan, changes, advice):
    report = run_report(plan_of(**plan), settings(**changes))
    assert len(report["cheaper"]) == len(advice), report["cheaper"]
    for got, start in zip(report["cheaper"], advice, strict=True):
        assert got.startswith(start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "v4:8"], "topology 'v4:8' is unknown"),
        (["--plan", "v5litepod-16"], "Did you mean v5e:4x4?"),
        (["--plan", "v5p-32"], "Did you mean v5p:2x2x4?"),
        (["--plan", "v6e-2x4"], "Did you mean v6e:2x4?"),
        (["--plan", "v5e:2x4", "--model.path", "qwen/qwen3.5-2"], "Did you mean Qwen/Qwen3.5-2B?"),
        (["--plan", "v5e:2x4", "--model.path", "Qwen/Qwen3.5-3B"], "neither a local folder nor a published size"),
        (["--plan", "v5e:2x4", "--mesh.fsdp", "4"], "the mesh has 4 devices, but v5e:2x4 has 8"),
        (["--plan", "v5e:2x4", "--mesh.fsdp", "1", "--mesh.tensor", "16"], "num_attention_heads=8"),
        (["--plan-json", "plan.json"], "name its TPUs with --plan"),
    ],
)
def test_wrong_input_is_one_line(monkeypatch, capsys, options, message):
    real = planning.topology_devices
    monkeypatch.setattr(planning, "topology_devices", lambda name: [None] * 8 if name == "v5e:2x4" else real(name))
    with pytest.raises(SystemExit) as stop:
        main(["configs/full_2b_v5e8.py", *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@needs_libtpu
@pytest.mark.slow
def test_a_real_plan_of_a_small_model(tmp_path):
    """The compiler is asked; parts of the memory are those of the shapes, and what does not fit is said so."""
    (tmp_path / "config.json").write_text(json.dumps(small_config().to_hf()))
    config = settings(model=ModelSource(str(tmp_path)), mesh=MeshConfig(fsdp=4, tensor=2))
    plan = make_plan(config, "v5e:2x4")
    assert plan.fits and plan.hbm["peak"] < 2**30
    # Weights in float32, two moments, both split over eight chips but for the norms.
    assert plan.hbm["optimizer"] == pytest.approx(2 * plan.hbm["weights"], rel=0.01)
    assert {collective.kind for collective in plan.costs.collectives} >= {"all-gather", "reduce-scatter"}
    assert 0 < plan.roofline_seconds < plan.estimated_seconds < 1


def test_the_tables_of_readme_and_docs_are_those_of_the_stored_plans():
    assert plan_recipes.summary() in (REPO / "README.md").read_text()
    assert plan_recipes.table() in (REPO / "docs" / "recipes_and_tpus.md").read_text()
    assert plan_teachers.table() in (REPO / "docs" / "distillation.md").read_text()


@pytest.mark.parametrize(
    ("name", "topology", "config"), list(plan_recipes.recipes()), ids=lambda value: str(value)[:24]
)
def test_stored_plans_are_those_of_the_recipes(name, topology, config):
    plan = plan_recipes.stored_plan(name)
    assert plan["settings"] == plan_recipes.fingerprint(topology, config)
    assert plan["fits"] and plan["topology"] == topology
    assert plan_recipes.figures(name) in importlib.import_module(f"configs.{name}").__doc__


@pytest.mark.parametrize(
    ("name", "topology", "config"), list(plan_teachers.variants()), ids=lambda value: str(value)[:24]
)
def test_stored_plans_are_those_of_the_teachers(name, topology, config):
    plan = json.loads((plan_teachers.STORED / f"{name}.json").read_text())
    assert plan["settings"] == plan_recipes.fingerprint(topology, config) and plan["topology"] == topology


@needs_libtpu
@pytest.mark.slow
def test_the_stored_plan_of_a_single_chip_is_what_the_compiler_says():
    ((_, topology, config),) = (recipe for recipe in plan_recipes.recipes() if recipe[0] == "lora_2b_v5e1")
    stored = plan_recipes.stored_plan("lora_2b_v5e1")
    plan = make_plan(config, topology)
    # Other versions of the compiler schedule differently; what a user rents by must not change.
    assert plan.hbm["peak"] == pytest.approx(stored["hbm"]["peak"], rel=0.1)
    assert plan.flops == pytest.approx(stored["flops"], rel=0.05)
