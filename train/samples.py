"""Sample answers of a model in training, so that one can read what it has learnt."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.generate import MODES, Request, generate_rows, in_order, read_requests
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.storage import write_atomically
from train.config import TrainConfig
from train.config.options import SamplesConfig
from train.data.masking import Example
from train.inputs import Inputs
from train.observe.trackers import Text
from train.setup import TrainingSetup
from train.state import TrainState

Sample = Callable[[TrainState], list[Text]]


def read_prompts(config: TrainConfig, inputs: Inputs) -> list[Request]:
    """Reads the prompts that the settings name; none if they ask for no samples.

    Raises:
      ValueError: there are none, they cannot be read or are too long, or the mesh cannot generate.
    """
    settings = config.options.samples
    if settings.every is None:
        return []
    if config.layout.mesh.context > 1:
        raise ValueError(
            f"samples.every={settings.every} needs a mesh that does not split positions, but "
            f"mesh.context={config.layout.mesh.context}; set it to 1 or leave samples.every out."
        )
    if settings.path is not None:
        found = read_requests(settings.path, inputs.tokenizer, enable_thinking=MODES[settings.mode])
    else:
        found = list(_from_validation(settings, inputs))
    requests = found[: settings.count]
    if not requests:
        raise ValueError(
            f"samples.every={settings.every} needs prompts: give a file with --samples.path, or validation data that "
            "hold conversations, such as --data.eval-path."
        )
    room = inputs.model_config.text.max_position_embeddings - settings.max_new_tokens
    longest = max(len(request.token_ids) for request in requests)
    if longest > room:
        raise ValueError(
            f"a prompt of the samples has {longest} tokens; with samples.max_new_tokens={settings.max_new_tokens} it "
            f"passes the model's positions; lower it or shorten the prompt."
        )
    return requests


def _from_validation(settings: SamplesConfig, inputs: Inputs) -> Iterator[Request]:
    """Yields the first conversations of text of the validation data, each up to its last answer."""
    if inputs.validation is None:
        return
    documents, mode = inputs.validation.documents, MODES[settings.mode]
    prompts = (documents.prompt(source, row, enable_thinking=mode) for source, row in inputs.validation.rows)
    of_text = (prompt for prompt in prompts if isinstance(prompt, Example) and not prompt.pictures)
    for number, prompt in enumerate(islice(of_text, settings.count)):
        yield Request(number, prompt.input_ids.tolist())


def make_sample(
    settings: SamplesConfig, setup: TrainingSetup, inputs: Inputs, prompts: list[Request], workdir: Path
) -> Sample | None:
    """Returns what answers the prompts, writes ``samples/step_XXXXXXXX.jsonl`` and returns the answers for trackers."""
    if not prompts:
        return None
    tokenizer = inputs.tokenizer
    # No more pages than the samples need: the rest of the memory is the training's.
    longest = max(len(request.token_ids) for request in prompts) + settings.max_new_tokens
    sizes = {"slots": len(prompts), "page_size": 64, "cache_tokens": len(prompts) * (longest + 64)}
    texts = {request.id: tokenizer.decode(request.token_ids, skip_special_tokens=False) for request in prompts}

    def sample(state: TrainState) -> list[Text]:
        rows: list[dict[str, Any]] = []
        generate_rows(
            Engine(setup.model(state), tokenizer, **sizes),
            prompts,
            in_order(lambda row: rows.append(row | {"prompt": texts[row["id"]]})),
            sampling=SamplingParams(temperature=0.0),
            max_new_tokens=settings.max_new_tokens,
        )
        if jax.process_index() == 0:
            path = workdir / "samples" / f"step_{int(state.step):08d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return [Text(f"samples/{row['id']}", _show(row)) for row in rows]

    return sample


def _show(row: dict[str, Any]) -> str:
    thinking = f"<think>\n{row['thinking']}\n</think>\n" if row["thinking"] else ""
    return f"{row['prompt']}{thinking}{row['response']}"
