"""Tasks of the installed lm_eval over rows given here; nothing is downloaded."""

import json

import pytest


def load(monkeypatch, names, splits):
    """Returns lm_eval's tasks by name.

    Args:
      splits: the rows of each split, or a function from the name of the data's configuration to these.
    """
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    import datasets
    from lm_eval.tasks import TaskManager

    def data(path=None, name=None, **_):
        rows = splits(name) if callable(splits) else splits
        return datasets.DatasetDict({split: datasets.Dataset.from_list(each) for split, each in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", data)
    return TaskManager().load(list(names))["tasks"]


def text_of(task, document, shots):
    """Returns the prompt that lm_eval gives a base model."""
    return task.fewshot_context(document, shots)


def messages_of(task, document, shots):
    """Returns the messages that lm_eval gives a chat template by default."""

    def as_json(messages, **_):
        return json.dumps(messages)

    turns = task.fewshot_context(
        document, shots, apply_chat_template=True, fewshot_as_multiturn=True, chat_template=as_json
    )
    return json.loads(turns)
