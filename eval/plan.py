"""What an evaluation takes on TPUs, before one is rented: tokens, hours and price, with the arithmetic.

    python -m eval.plan CONFIG.py --topology v5e:2x4 v6e:2x4 --modes thinking non_thinking --price-per-chip-hour 1.20

The time of a step follows from the bytes that it moves and the chips' data sheets, as in ``qwen35 plan``; nothing is
compiled. CONFIG.py and its overrides are those of ``eval.run``.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from eval.config import MOST_PATCHES, EvalConfig, max_new_tokens_of
from eval.expected import (
    ANSWER_TOKENS,
    Expected,
    expected_documents,
    expected_patches,
    expected_prompt,
    expected_response,
    frame_patches,
)
from eval.plan_report import Load, Plans, TaskPlan, to_json, to_text
from eval.protocols import Mode
from eval.tasks import get_task
from eval.tasks.base import Document, Task
from eval.tasks.media import media_of
from qwen35_jax import gcs
from qwen35_jax.command import config_from_command_line, one_line_errors, parse
from qwen35_jax.config import ModelConfig
from qwen35_jax.planning.decode import Layout, Workload, lay_out
from qwen35_jax.planning.published import find_config
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.image import image_grid, image_size
from qwen35_jax.processing.media import MediaPolicy
from qwen35_jax.processing.settings import ImageSettings
from qwen35_jax.processing.tokenizer import TOKENIZER_FILES, Tokenizer
from qwen35_jax.sharding import GENERATION_AXES
from qwen35_jax.storage import write_json
from qwen35_jax.wording import options_as_typed, options_of

_PROGRAM = "python -m eval.plan"


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is planned.

    Raises:
      ValueError: a field is out of its range.
    """

    run: Annotated[EvalConfig, tyro.conf.arg(name="")]
    topology: tuple[str, ...] = ("v5e:2x4",)
    """Chips and their grid; each is planned."""
    modes: tuple[Mode, ...] = ()
    """Modes to plan; by default the run's own."""
    mean_tokens: int | None = None
    """Mean tokens of a response, thinking included, in place of what is expected."""
    prompt_tokens: int | None = None
    """Mean tokens of a prompt, likewise."""
    share_of_peak: float = 1.0
    """Which share of the data sheets' rates is reached. No program reaches all of it."""
    price_per_chip_hour: float | None = None
    """Price of one chip for an hour, in any currency."""
    json: str | None = None
    """Also write the plans to this new file."""

    def __post_init__(self):
        for name in ("mean_tokens", "prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; give at least 1.")
        if not 0 < self.share_of_peak <= 1:
            raise ValueError(f"share_of_peak={self.share_of_peak}; give a share above 0 and at most 1.")
        if self.price_per_chip_hour is not None and not 0 <= self.price_per_chip_hour < float("inf"):
            raise ValueError(f"price_per_chip_hour={self.price_per_chip_hour}; give a price from 0.")
        if not self.topology:
            raise ValueError("topology names no chips; give one or more, such as v5e:2x4.")
        if self.json is not None:
            gcs.check_is_path(self.json)
            if Path(self.json).exists():
                raise ValueError(f"json={self.json!r} exists; name a new file or remove it.")
        if self.run.style == "likelihood" or self.run.server.url is not None:
            raise ValueError(
                "a plan is for responses that our engine writes; leave out --style likelihood and --server.url."
            )


def load_of(config: PlanConfig, task: Task, model: ModelConfig, mode: Mode) -> Load:
    """Returns what a task asks for: counted from its data where a data directory is given, else as published.

    Raises:
      ValueError: the data cannot be read, or they are the user's own and no directory is given.
    """
    run = dataclasses.replace(config.run, mode=mode)
    protocol = task.protocol(run.protocol)
    limit = max_new_tokens_of(run, protocol)
    size = next((name for name, preset in PRESETS.items() if preset.text == model.text), None)
    documents = expected_documents(task.name, run.split)
    if run.limit is not None and documents is not None and run.limit < documents.value:
        documents = Expected(run.limit, f"--limit {run.limit} of {documents.value:,}")
    patches = expected_patches(protocol.modality)
    measured = None
    if run.data_dir is not None:
        loaded = task.load(run.protocol, run.data_dir, run.limit, run.split)
        documents = Expected(len(loaded.documents), f"counted in {loaded.source}")
        if protocol.modality == "image":
            patches = _measured_patches(loaded.documents)
        elif protocol.modality == "text":
            measured = _measured_prompt(run, loaded.documents)
    prompt = measured or expected_prompt(run.protocol, protocol.shots, patches)
    if documents is None:
        split = "" if run.split is None else f" in split {run.split}"
        raise ValueError(f"how many documents {task.name} has{split} is not known; give --data-dir.")
    response = expected_response(task.name, mode, run.style, size, limit)
    if run.thinking_budget is not None and (longest := run.thinking_budget + ANSWER_TOKENS) < response.value:
        response = Expected(longest, f"a thinking budget of {run.thinking_budget:,} and an answer")
    if config.mean_tokens is not None:
        response = Expected(min(config.mean_tokens, limit), "--mean-tokens")
    if config.prompt_tokens is not None:
        prompt = Expected(config.prompt_tokens, "--prompt-tokens")
    return Load(
        task.name, mode, documents, run.repeats, prompt, response, limit, patches, frame_patches(protocol.modality)
    )


def _measured_prompt(run: EvalConfig, documents: Sequence[Document]) -> Expected | None:
    """Returns the mean tokens of the prompts, where the model's tokenizer is at hand."""
    folder = Path(run.model.path)
    if not (folder / TOKENIZER_FILES[0]).is_file():
        return None
    tokenizer = Tokenizer.from_pretrained(folder)
    if run.style == "text":
        lengths = [len(tokenizer.encode(document.text or "")) for document in documents]
    else:
        thinks = run.mode == "thinking"
        lengths = [len(tokenizer.encode_chat(document.messages, enable_thinking=thinks)) for document in documents]
    return Expected(-(-sum(lengths) // len(lengths)), "counted in the prompts")


def _measured_patches(documents: Sequence[Document]) -> Expected:
    """Returns the mean patches of the images of a question, in the sizes in which the model sees them.

    Raises:
      ValueError: an image cannot be read.
    """
    total = 0
    for document in documents:
        for part in media_of(document.messages):
            image = part["image"]
            size = image_size(image.read(), image.where, MediaPolicy())
            total += math.prod(image_grid(*size, ImageSettings().limited(part)))
    return Expected(-(-total // len(documents)), "counted in the images")


def make_plans(config: PlanConfig) -> Plans:
    """Returns the plan of each task by topology and mode; the tasks of one list are written together.

    Raises:
      ValueError: an unknown topology, task or model, data that cannot be read, or a response that does not fit.
    """
    run = config.run
    tasks = [get_task(name) for name in run.tasks]
    model = find_config(run.model.path)
    shows = [task.name for task in tasks if task.protocol(run.protocol).modality != "text"]
    if shows and model.vision is None:
        raise ValueError(f"{run.model.path} has no vision tower, which {', '.join(shows)} need; leave these tasks out.")
    patches = (run.most_patches or MOST_PATCHES) if shows else 0
    plans = {}
    for mode in config.modes or (run.mode,):
        own = config if mode == run.mode else _in_mode(config, mode)
        loads = [load_of(own, task, model, mode) for task in tasks]
        longest = max(load.prompt.value + load.limit for load in loads)
        for topology in config.topology:
            workload = Workload(longest, speculative_tokens=run.speculative_tokens, patches=patches)
            layout = _with_slots(model, topology, workload, run)
            engine = layout.engine
            room = engine.cache_tokens // engine.shards
            if room < longest:
                raise ValueError(
                    f"{topology} has room for {room:,} tokens of a data shard beside the weights, but a request may "
                    f"have {longest:,}; give a smaller --max-new-tokens, fewer --slots or a larger --mesh.tensor."
                )
            plans[topology, mode] = [TaskPlan(load, layout, config.share_of_peak) for load in loads]
    return plans


def _in_mode(config: PlanConfig, mode: Mode) -> PlanConfig:
    budget = config.run.thinking_budget if mode == "thinking" else None
    return dataclasses.replace(config, run=dataclasses.replace(config.run, mode=mode, thinking_budget=budget))


def _with_slots(model: ModelConfig, topology: str, workload: Workload, run: EvalConfig) -> Layout:
    """Lays the engine out with the run's slots, rounded up as the engine does; ``data`` takes the chips left."""
    mesh = {axis: getattr(run.mesh, axis) for axis in GENERATION_AXES if axis != "data"}
    layout = lay_out(model, topology, workload, mesh)
    shards = layout.engine.shards
    return lay_out(model, topology, dataclasses.replace(workload, slots=-(-run.slots // shards) * shards), mesh)


def read_command(arguments: Sequence[str]) -> PlanConfig:
    """Returns the settings of ``CONFIG.py [overrides]``.

    Raises:
      ValueError: no run file of an evaluation first, or a wrong override.
    """
    usage = f"{_PROGRAM} CONFIG.py"
    if arguments and arguments[0] in ("-h", "--help"):
        parse(["--help"], PlanConfig(EvalConfig()), program=usage)
    run = config_from_command_line(arguments[:1], EvalConfig, program=_PROGRAM)
    return parse(arguments[1:], PlanConfig(run), program=usage)


@one_line_errors()
@options_as_typed(lambda: options_of(PlanConfig))
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    config = read_command(sys.argv[1:] if argv is None else argv)
    plans = make_plans(config)
    if config.json is not None:
        write_json(Path(config.json), to_json(plans, config.price_per_chip_hour))
    print(to_text(plans, config.price_per_chip_hour))


if __name__ == "__main__":
    main()
