"""Which files of a folder or hub dataset are read: one split of one configuration, or an error that lists them."""

import re
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from qwen35_jax.hf.hub import find_files
from qwen35_jax.hf.splits import choose_files

LANGUAGES = [
    {
        "config_name": "de",
        "data_files": [{"split": "train", "path": "de/train-*"}, {"split": "test", "path": "de/test*"}],
    },
    {"config_name": "fr", "data_files": [{"split": "train", "path": ["fr/train-*", "fr/more.parquet"]}]},
]
FILES = ["README.md", "de/train-0.parquet", "de/train-1.parquet", "de/test-0.parquet", "fr/train-0.parquet"]
FILES += ["fr/more.parquet", "fr/unused.parquet"]

CHOICES = {
    "the subset that is named": (FILES, LANGUAGES, {"subset": "fr"}, ["fr/more.parquet", "fr/train-0.parquet"]),
    "a split of it": (FILES, LANGUAGES, {"subset": "de", "split": "test"}, ["de/test-0.parquet"]),
    "the default": (
        FILES,
        [LANGUAGES[0], LANGUAGES[1] | {"default": True}],
        {},
        ["fr/more.parquet", "fr/train-0.parquet"],
    ),
    "the one called default": (FILES, [LANGUAGES[1], LANGUAGES[0] | {"config_name": "default"}], {}, FILES[1:3]),
    "the only one": (FILES, LANGUAGES[:1], {}, FILES[1:3]),
    "a card with one path": (["a.jsonl", "b.jsonl"], [{"config_name": "x", "data_files": "a.jsonl"}], {}, ["a.jsonl"]),
    "a card with paths": (["a.jsonl", "b.jsonl"], [{"data_files": ["a.jsonl", "b.jsonl"]}], {}, ["a.jsonl", "b.jsonl"]),
    "any depth": (["x/y/a.jsonl", "b.jsonl"], [{"data_files": "**/*.jsonl"}], {}, ["b.jsonl", "x/y/a.jsonl"]),
    "a card with a folder": (FILES, [{"config_name": "de", "data_dir": "de"}], {}, FILES[1:3]),
    "folder and files": (FILES, [{"data_dir": "de", "data_files": "train-*"}], {}, FILES[1:3]),
    "a card without files": (["train.jsonl", "test.jsonl"], [{"config_name": "default"}], {}, ["train.jsonl"]),
    "train by name": (["data/train-0.parquet", "data/test-0.parquet"], [], {}, ["data/train-0.parquet"]),
    "another split by name": (["train.jsonl", "dev.jsonl"], [], {"split": "validation"}, ["dev.jsonl"]),
    "a split with a longer name": (["train_sft.jsonl", "test_sft.jsonl"], [], {}, ["train_sft.jsonl"]),
    "its whole name": (["train_sft.jsonl", "train_gen.jsonl"], [], {"split": "train_gen"}, ["train_gen.jsonl"]),
    "folders of splits": (
        ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"],
        [],
        {},
        ["train/a.jsonl", "train/b.jsonl"],
    ),
    "no names of splits": (["chats.jsonl", "more.jsonl"], [], {}, ["chats.jsonl", "more.jsonl"]),
    "a folder by name": (["de/train.jsonl", "fr/train.jsonl"], [], {"subset": "fr"}, ["fr/train.jsonl"]),
    "words that hold train": (
        ["constraints.jsonl", "test.jsonl", "trainer.jsonl"],
        [],
        {},
        ["constraints.jsonl", "trainer.jsonl"],
    ),
    "no description": (["a.json", "dataset_infos.json", ".x/b.json", "_c.json"], [], {}, ["a.json"]),
    "a pattern": (FILES, LANGUAGES, {"pattern": "*train*"}, [*FILES[1:3], "fr/train-0.parquet"]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice(name):
    names, configs, options, expected = CHOICES[name]
    assert choose_files(names, configs, **options) == expected


UNCLEAR = {
    "configurations": (FILES, LANGUAGES, {}, "it has several configurations: de, fr; choose one with --data.subset"),
    "no such configuration": (FILES, LANGUAGES, {"subset": "it"}, "'it' is none of its configurations: de, fr"),
    "splits of the card": (
        ["a.jsonl"],
        [{"data_files": [{"split": "train_sft", "path": "a*"}, {"split": "test_sft", "path": "b*"}]}],
        {},
        "it has several splits: train_sft, test_sft; choose one with --data.split",
    ),
    "no such split": (FILES, LANGUAGES[:1], {"split": "dev"}, "'dev' is none of its splits: train, test"),
    "no such split by name": (
        ["train.jsonl", "test.jsonl"],
        [],
        {"split": "dev"},
        "'dev' is none of its splits: test, train",
    ),
    "only a test split": (["test.jsonl", "validation.jsonl"], [], {}, "it has several splits: test, validation"),
    "folders": (
        ["de/train.jsonl", "fr/train.jsonl"],
        [],
        {},
        "it has several folders: de, fr; choose one with --data.sub",
    ),
    "folder and file": (["main/train-0.jsonl", "train.jsonl"], [], {}, "it has several folders: main, ."),
    "no such folder": (["de/train.jsonl"], [], {"subset": "it"}, "'it' is none of its folders: de"),
    "kinds": (["a.jsonl", "b.parquet"], [], {}, "files of several kinds (1 .jsonl, 1 .parquet)"),
    "packed beside plain": (["a.jsonl", "a.jsonl.gz"], [], {}, "files of several kinds (1 .jsonl, 1 .jsonl.gz)"),
    "nothing": (["a.csv", "README.md"], [], {}, "it holds no file that ends in .jsonl, .json,"),
    "no match": (FILES, [], {"pattern": "socratic/*"}, "no file matches hub-files='socratic/*'; its files: de/test"),
    "a card of other files": (
        ["a.jsonl"],
        [{"data_files": "b*"}],
        {},
        "no data file matches what its card names for train: b*",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_clear_is_listed(name):
    names, configs, options, words = UNCLEAR[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        choose_files(names, configs, **options)


@pytest.fixture
def folder(tmp_path):
    def make(*names, card=None):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}")
        if card is not None:
            (tmp_path / "README.md").write_text(card, encoding="utf-8")
        return tmp_path

    return make


CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train*
- config_name: socratic
  data_files: socratic/*
---
# Words
"""


def test_a_folder(folder):
    here = folder("main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl", card=CARD)
    assert find_files(str(here)) == [here / "main" / "train.jsonl"]
    assert find_files(str(here), subset="socratic") == [here / "socratic" / "train.jsonl"]
    with pytest.raises(
        ValueError, match=r"is a folder of which the files to read are not clear: 'test' is none of its"
    ):
        find_files(str(here), split="test")


@pytest.mark.parametrize(
    "card", ["no head", "---\n: {\n---\n", "---\n- a\n---\n", "---\nconfigs: 3\n---\n", "---\n\n---"]
)
def test_a_folder_whose_card_says_nothing(folder, card):
    here = folder("a.jsonl", card=card)
    assert find_files(str(here)) == [here / "a.jsonl"]


def test_a_folder_that_save_to_disk_made(folder):
    with pytest.raises(ValueError, match="it was made by save_to_disk: write it anew with to_parquet"):
        find_files(str(folder("data-0.arrow", "dataset_info.json", "state.json")))


@pytest.mark.parametrize("option", ["split", "subset"])
def test_a_file_has_no_splits(folder, option):
    here = folder("a.jsonl")
    for path in (here / "a.jsonl", here / "*.jsonl"):
        with pytest.raises(ValueError, match=rf"--data.{option} chooses among the files of a folder or hub dataset"):
            find_files(str(path), **{option: "x"})


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub with one dataset; it notes what it is asked for."""
    asked = []

    def make(*names, card=None, online=True):
        here = folder(*names, card=card)

        def snapshot(name, *, allow_patterns, **options):
            asked.append((name, options, allow_patterns))
            return str(here)

        def info(name, **options):
            if not online:
                raise OfflineModeIsEnabled("offline")
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in [*names, "README.md"]])

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(huggingface_hub, "dataset_info", info)
        return here

    make.asked = asked
    return make


@pytest.mark.parametrize("online", [True, False])
def test_a_hub_dataset(hub, online):
    here = hub("main/train-[0].jsonl", "main/test.jsonl", "socratic/train.jsonl", card=CARD, online=online)
    assert find_files("org/some-data@v1.0") == [here / "main" / "train-[0].jsonl"]
    options = {"repo_type": "dataset", "revision": "v1.0"}
    assert hub.asked == [
        ("org/some-data", options, ["README.md"]),
        ("org/some-data", options, ["main/train-[[]0].jsonl"]),
    ]
    assert find_files("org/some-data", subset="socratic") == [here / "socratic" / "train.jsonl"]
    assert len(find_files("org/some-data", hub_files="*train*")) == 2
    with pytest.raises(
        ValueError, match=r"'org/some-data' is a dataset of which the files .* 'x' is none of its config"
    ):
        find_files("org/some-data", subset="x")


def test_the_default_does_not_read_several_configurations(hub):
    hub("main/train-0.parquet", "socratic/train-0.parquet", "main/test-0.parquet")
    with pytest.raises(ValueError, match=r"it has several folders: main, socratic; choose one with --data.subset\."):
        find_files("org/gsm8k")
    assert [file.parent.name for file in find_files("org/gsm8k", subset="main")] == ["main"]


def test_a_file_that_the_hub_lists_and_does_not_give(hub):
    here = hub("train-0.jsonl", "train-1.jsonl")
    (here / "train-1.jsonl").unlink()
    with pytest.raises(ValueError, match=r"the hub did not give train-1.jsonl of 'org/name'; try again"):
        find_files("org/name")


def test_hub_dataset_without_network(monkeypatch):
    def snapshot(name, **options):
        raise LocalEntryNotFoundError("Cannot find the snapshot.\nMore words.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ValueError, match=r"'org/name' is no local file, .*: Cannot find the snapshot\. Check the name"):
        find_files("org/name")
