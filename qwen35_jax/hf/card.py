"""The model card of an adapter: ``README.md`` with the metadata that the hub reads."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qwen35_jax.hf.adapter import AutoClass


class Card(NamedTuple):
    """What a model card says.

    Attributes:
      base: the base model: hub id, or path.
      revision: its revision on the hub.
      auto_class: the class of transformers that the adapter's names are for.
      chat: whether the model was trained on conversations.
      recipe: the recipe of the run record.
      rows: how many rows the data have.
      step: the step that is exported.
      metrics: the entry of that step.
    """

    base: str
    revision: str | None
    auto_class: AutoClass
    chat: bool
    recipe: Mapping[str, Any]
    rows: int | None
    step: int
    metrics: Mapping[str, Any]

    def render(self) -> str:
        """Returns the text of the card."""
        metadata = {"base_model": self.base, "base_model_revision": self.revision, "library_name": "peft"}
        metadata |= {"pipeline_tag": "text-generation", "tags": ["lora", "qwen3.5", "qwen35-jax"]}
        head = (f"{key}: {json.dumps(value)}" for key, value in metadata.items() if value is not None)
        at = f" at revision `{self.revision}`" if self.revision else ""
        parts = [
            "\n".join(["---", *head, "---"]),
            f"# LoRA adapter for {self.base}",
            f"It was trained with qwen35-jax from `{self.base}`{at}.",
            "## Data and settings",
            _table("setting", _settings(self)),
            f"## Metrics of step {self.step}",
            _table("metric", _shown(self.metrics)) if self.metrics else "None were recorded.",
            "## Use",
            self._how_to_load(),
        ]
        return "\n\n".join(parts) + "\n"

    def _how_to_load(self) -> str:
        revision = f", revision={self.revision!r}" if self.revision else ""
        generation, note = "", ""
        if self.chat:
            generation = ", generation_config=GenerationConfig.from_pretrained(ADAPTER)"
            note = (
                "Neither library reads the adapter's `generation_config.json` by itself. It names the tokens that end "
                "an answer, so it is passed when the base model is loaded.\n\n"
            )
        imports = f"{self.auto_class}, AutoTokenizer" + (", GenerationConfig" if self.chat else "")
        return f"""{note}With peft, which can also merge the adapter (`model.merge_and_unload()`):

```python
from peft import PeftModel
from transformers import {imports}

ADAPTER = "."  # this folder, or its name on the hub
base = {self.auto_class}.from_pretrained({self.base!r}{revision}{generation})
model = PeftModel.from_pretrained(base, ADAPTER)
{_ANSWER if self.chat else _CONTINUE}
```

With transformers alone:

```python
from transformers import {imports}

ADAPTER = "."
model = {self.auto_class}.from_pretrained({self.base!r}{revision}{generation})
model.load_adapter(ADAPTER)
{_ANSWER if self.chat else _CONTINUE}
```

With qwen35-jax:

```
qwen35 chat --model {self.base}{"@" + self.revision if self.revision else ""} --adapter .
```"""


_ANSWER = """tokenizer = AutoTokenizer.from_pretrained(ADAPTER)
messages = [{"role": "user", "content": "Hello!"}]
# enable_thinking=True or False says whether the model reasons first.
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0]))"""
_CONTINUE = """tokenizer = AutoTokenizer.from_pretrained(ADAPTER)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""


def _settings(card: Card) -> Iterator[tuple[str, Any]]:
    """Yields the settings that a reader asks for first."""
    data, optim = card.recipe.get("data") or {}, card.recipe.get("optim") or {}
    sources = [data.get("path"), *(source.get("path") for source in data.get("sources") or ())]
    yield "data", ", ".join(str(source) for source in sources if source)
    yield "rows", card.rows
    yield "steps", f"{card.step} of {card.recipe.get('steps')}"
    yield "sequences in a batch", data.get("sequences_per_batch")
    yield "tokens in a sequence", data.get("sequence_length")
    yield from ((f"data.{key}", data.get(key)) for key in ("train_on", "train_on_thinking", "seed"))
    yield from ((f"lora.{key}", value) for key, value in (card.recipe.get("lora") or {}).items())
    names = ("learning_rate", "schedule", "warmup", "weight_decay")
    yield from ((f"optim.{key}", optim.get(key)) for key in names)
    yield "MTP weight", ((card.recipe.get("objective") or {}).get("mtp") or {}).get("weight")
    yield "seed", card.recipe.get("seed")


def _shown(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the metrics that say something of the model, not of the machine."""
    for name, value in metrics.items():
        if name == "loss" or name.endswith("_loss") or name.startswith(("mtp_loss", "eval_", "divergence")):
            yield name, f"{value:.4g}" if isinstance(value, float) else value


def _table(name: str, entries: Iterator[tuple[str, Any]]) -> str:
    def cell(value: Any) -> str:
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [f"| {key} | {cell(value)} |" for key, value in entries if value not in (None, "")]
    return "\n".join([f"| {name} | value |", "|---|---|", *lines])
