"""Plans every recipe of ``configs/`` that names a topology, and prints the tables of README and docs.

    python -m benchmarks.plan_recipes [NAME ...]     plans these recipes (by default all), minutes each
    python -m benchmarks.plan_recipes --table        prints the tables of the plans that are stored

Plans are stored in ``configs/plans/NAME.json`` with the settings they were made for. A test compares both, and the
tables with README.md and docs/recipes_and_tpus.md. Times are ranges (see ``train.plan_report``).
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwen35_jax.storage import write_atomically
from train.config import Distillation, Recipe, TrainConfig
from train.plan import make_plan
from train.plan_report import Range, rate, step_seconds, to_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PLANS = CONFIGS / "plans"


def recipes() -> Iterator[tuple[str, str, TrainConfig]]:
    """Yields name, topology and settings of each recipe."""
    for path in sorted(CONFIGS.glob("*.py")):
        if "\nTOPOLOGY = " in path.read_text():
            module = importlib.import_module(f"configs.{path.stem}")
            yield path.stem, module.TOPOLOGY, module.config()


def fingerprint(topology: str, config: TrainConfig) -> str:
    """Identifies the settings that a plan was made for. How a run is operated and where its data lie change no plan.

    Settings that have their default do not count, so that a new one leaves the plans as they are.
    """
    recipe = config.recipe
    models = [recipe.model.path]
    if isinstance(recipe.objective, Distillation):
        models.append(recipe.objective.teacher.path)
    text = json.dumps([topology, *models, _changed(recipe), _changed(config.layout)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed(settings: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that do not have their default, those of its parts included."""
    changed = {}
    for field in dataclasses.fields(settings):
        if not field.compare:
            continue
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(value):
            inside = _changed(value)
            if inside or type(value) is not type(default):
                changed[field.name] = inside
        elif value != default:
            changed[field.name] = value
    return changed


def stored_plan(name: str) -> dict[str, Any]:
    """Reads the plan of a recipe."""
    return json.loads((PLANS / f"{name}.json").read_text())


def figures(name: str) -> str:
    """Sums up the stored plan of a recipe, for its docstring."""
    plan = stored_plan(name)
    peak, capacity = (plan["hbm"][key] / 2**30 for key in ("peak", "capacity"))
    return (
        f"Planned: {peak:.1f} of {capacity:.1f} GiB of HBM a chip; a step takes {plan['roofline_seconds']:.2f} s at "
        f"least, {plan['estimated_seconds']:.2f} s by the compiler's estimate."
    )


def _seconds(plan: dict[str, Any]) -> Range:
    return step_seconds(plan["seconds"], plan["estimated_seconds"])


def table() -> str:
    """Lays the stored plans out as Markdown."""
    lines = [
        "| recipe | chips | tokens a step | HBM, GiB a chip | step, s | bound by | tokens/s a chip "
        "| chip-hours for a billion tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, topology, _ in recipes():
        plan = stored_plan(name)
        peak, capacity = (plan["hbm"][key] / 2**30 for key in ("peak", "capacity"))
        memory = f"{peak:.1f} of {capacity:.1f}" + ("" if plan["fits"] else ": does not fit")
        cells = [f"`configs/{name}.py`", topology, f"{plan['tokens_per_step']:,}", memory]
        if plan["fits"]:
            seconds, chips = _seconds(plan), plan["num_devices"]
            cells += [
                seconds.to_text(".2f"),
                plan["limits"],
                rate(plan["tokens_per_step"] / chips, seconds).to_text(),
                seconds.times(chips / 3600 / plan["tokens_per_step"] * 1e9).to_text(),
            ]
        else:
            cells += [""] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary() -> str:
    """Lays out, for the README, the smallest slice planned for each model, kind of training and sequence length."""
    lines = [
        "| model | training | tokens a sequence | slice | HBM, GiB a chip | tokens/s | recipe |",
        "|---|---|---|---|---|---|---|",
    ]
    smallest: dict[tuple[str, str, int], tuple[int, str]] = {}
    for name, topology, config in recipes():
        recipe, plan = config.recipe, stored_plan(name)
        model = recipe.model.path.removeprefix("Qwen/Qwen3.5-").removesuffix("-Base")
        key = model, _training(recipe), recipe.data.sequence_length
        peak, capacity = (plan["hbm"][kind] / 2**30 for kind in ("peak", "capacity"))
        speed = rate(plan["tokens_per_step"], _seconds(plan)).to_text()
        cells = [*key[:2], f"{key[2]:,}", topology, f"{peak:.1f} of {capacity:.1f}", speed]
        line = "| " + " | ".join([*cells, f"`configs/{name}.py`"]) + " |"
        smallest[key] = min(smallest.get(key, (plan["num_devices"], line)), (plan["num_devices"], line))
    return "\n".join([*lines, *(line for _, (_, line) in sorted(smallest.items()))])


def _training(recipe: Recipe) -> str:
    """Says what trains, on what besides text, and from whom."""
    kind = ("full" if recipe.lora is None else "LoRA") + (", images" if recipe.data.vision is not None else "")
    if not isinstance(recipe.objective, Distillation):
        return kind
    way = "live" if recipe.objective.rollouts is None else "on-policy"
    return f"{kind}, {way} from the {recipe.objective.teacher.path.removeprefix('Qwen/Qwen3.5-')}"


def main(arguments: list[str] | None = None) -> None:
    run_command(arguments, __doc__, recipes, PLANS, lambda: f"{summary()}\n\n{table()}")


def run_command(
    arguments: list[str] | None,
    description: str,
    plans: Callable[[], Iterator[tuple[str, str, TrainConfig]]],
    folder: Path,
    tables: Callable[[], str],
) -> None:
    """Makes the plans that are named and stores them in a folder, or prints what is stored."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.table:
        folder.mkdir(exist_ok=True)
        for name, topology, config in plans():
            if not options.names or name in options.names:
                plan = make_plan(config, topology)
                report = plan.to_json() | {"settings": fingerprint(topology, config)}
                write_atomically(folder / f"{name}.json", json.dumps(report, indent=1) + "\n")
                print(f"{name}\n{to_text(plan, config)}", flush=True)
    if options.table or not options.names:
        print(tables())


if __name__ == "__main__":
    main()
