"""Writes what a run has trained, with all that others need to use it: an adapter's folder, or a whole checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen35_jax.hf.adapter import AutoClass, own_auto_class, save_adapter
from qwen35_jax.hf.card import Card
from qwen35_jax.hf.chat_files import CONFIG, chat_files, companion_files
from qwen35_jax.hf.hub import public_name
from qwen35_jax.hf.save import save
from qwen35_jax.model import Qwen35

CARD_FILE = "README.md"


def export_checkpoint(model: Qwen35, out_dir: Path, record: Mapping[str, Any], source: Path) -> None:
    """Writes a whole checkpoint with adapters merged in. After plain text only its weights differ from the base.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      record: the run record.
      source: the folder of the base checkpoint.
    """
    save(model, out_dir, source, files=chat_files(source) if _is_chat(record) else None)


def export_adapter(
    model: Qwen35,
    out_dir: Path,
    record: Mapping[str, Any],
    source: Path,
    *,
    step: int,
    metrics: Mapping[str, Any],
    auto_class: AutoClass | None = None,
    base: str | None = None,
) -> None:
    """Writes the adapter with its tokenizer, chat template, ``generation_config.json`` and a model card.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      record: the run record.
      source: the folder of the base checkpoint.
      step: the step that is exported.
      metrics: its entry, for the card.
      auto_class: see ``save_adapter``.
      base: how the adapter names its base, if not as the run was given it.
    """
    name, revision = public_name(base or record["recipe"]["model"]["path"], None if base else source)
    chat = _is_chat(record)
    files = companion_files(source)
    if chat:
        files |= {file: content for file, content in chat_files(source).items() if file != CONFIG}
    card = Card(
        base=name,
        revision=revision,
        auto_class=auto_class or own_auto_class(model),
        chat=chat,
        recipe=record["recipe"],
        rows=((record.get("identity") or {}).get("data") or {}).get("rows"),
        step=step,
        metrics=metrics,
    )
    files[CARD_FILE] = card.render().encode()
    save_adapter(model, out_dir, name, revision=revision, auto_class=auto_class, files=files)


def _is_chat(record: Mapping[str, Any]) -> bool:
    return bool((record.get("identity") or {}).get("conversations"))
