"""Plans the distillation of a live teacher into the 2B for several teachers, kinds of training and slices.

    python -m benchmarks.plan_teachers [NAME ...]     plans these, by default all, minutes each
    python -m benchmarks.plan_teachers --table        prints the table of the plans that are stored

The run file is configs/distill_live_9b_to_2b.py. Plans are stored in ``configs/plans/teachers``; a test compares the
table with docs/distillation.md.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator

from benchmarks.plan_recipes import PLANS, run_command
from configs import distill_live_9b_to_2b as recipe
from train.config import Distillation, MeshConfig, TrainConfig
from train.plan_report import rate, step_seconds

STORED = PLANS / "teachers"
SLICES = {"v5e:2x4": 8, "v6e:2x4": 8, "v5p:2x2x1": 4}
"""Chips of each slice. A v5p-8 has four of them."""


def variants() -> Iterator[tuple[str, str, TrainConfig]]:
    """Yields name, topology and settings of each."""
    for size, tune, (topology, chips) in itertools.product(("9B", "27B"), ("full", "lora"), SLICES.items()):
        config = recipe.config()
        objective = config.recipe.objective
        assert isinstance(objective, Distillation)
        teacher = dataclasses.replace(objective.teacher, path=f"Qwen/Qwen3.5-{size}")
        changes = {"objective": dataclasses.replace(objective, teacher=teacher), "mesh": MeshConfig(fsdp=chips)}
        if tune == "lora":
            changes |= {"tune": "lora", "optim": dataclasses.replace(config.recipe.optim, learning_rate=None)}
        yield f"{size.lower()}_{tune}_{topology.partition(':')[0]}", topology, config.replace(**changes)


def table() -> str:
    """Lays the stored plans out as Markdown."""
    lines = [
        "| teacher | student | slice | chips | HBM, GiB a chip | of it the teacher | step, s | tokens/s "
        "| teacher's share of the step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, topology, config in variants():
        plan = json.loads((STORED / f"{name}.json").read_text())
        objective = config.recipe.objective
        assert isinstance(objective, Distillation)
        peak, capacity, teacher = (plan["hbm"][key] / 2**30 for key in ("peak", "capacity", "teacher"))
        memory = f"{peak:.1f} of {capacity:.1f}" + ("" if plan["fits"] else ": does not fit")
        seconds = step_seconds(plan["seconds"], plan["estimated_seconds"])
        cells = [
            objective.teacher.path.removeprefix("Qwen/Qwen3.5-"),
            "2B, LoRA" if config.recipe.lora is not None else "2B, full",
            topology,
            str(plan["num_devices"]),
            memory,
            f"{teacher:.1f}",
        ]
        if plan["fits"]:
            speed = rate(plan["tokens_per_step"], seconds).to_text()
            cells += [seconds.to_text(".2f"), speed, f"{plan['teacher_share']:.0%}"]
        else:
            cells += [""] * 3
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    run_command(arguments, __doc__, variants, STORED, table)


if __name__ == "__main__":
    main()
