"""What a user names with gs://: models, adapters, data, prompts and the data of evaluations are those of a disk."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from eval.config import EvalConfig
from eval.score import ScoreConfig
from eval.score import main as score
from eval.tasks import ifeval
from eval.tasks.data import Data, read_split
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax import gcs, lora
from qwen35_jax.cli import main
from qwen35_jax.hf.adapter import save_adapter
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.hub import find_file, find_files, find_folder, public_name
from qwen35_jax.hf.load import load
from qwen35_jax.hf.sizes import resize
from qwen35_jax.inference.generate import read_requests
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from train.config.data import DataConfig, Source
from train.data.documents import Documents
from train.data.pipeline import make_batches
from train.data.validation import read_validation
from train.plan import find_config

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "x" * n}]}
    for n in range(1, 9)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CARD = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'a*.jsonl'}\n---\n"


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    return build_tiny_tokenizer(["user assistant\nsay x"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


@pytest.fixture
def put_folder(place):
    def put(folder, name):
        for path in folder.rglob("*"):
            if path.is_file():
                place.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{place.address}/{name}"

    return put


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(capsys, *arguments):
    """Returns the one line in which the ``qwen35`` command ends."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1, line
    return line


# Models and adapters


def test_the_folder_of_a_model(place, put_folder, tokenizer_dir):
    address = put_folder(tokenizer_dir, "m@1")
    assert contents(find_folder(f"{address}/")) == contents(tokenizer_dir)
    assert public_name(address, find_folder(address)) == (address, None)


def test_a_folder_without_a_model_is_not_copied(place, capsys):
    place.put("data/huge.parquet", b"1")
    line = refused(capsys, "generate", "--model", f"{place.address}/data", "hello")
    assert f"{place.address}/data holds none of config.json, adapter_config.json, tokenizer.json; give" in line
    line = refused(capsys, "generate", "--model", f"{place.address}/absent", "hello")
    assert f"{place.address}/absent holds none of config.json" in line


def test_the_directory_of_a_run_is_not_its_model(place):
    for name in ("config.json", "checkpoints/3/state/d/1", "export/config.json"):
        place.put(f"run/{name}", b"{}")
    with pytest.raises(ValueError, match=f"is the --workdir of a run; give what it exported, {place.address}/run/ex"):
        find_folder(f"{place.address}/run")


def test_a_checkpoint_is_made_in_a_bucket_as_on_disk(place, put_folder, tokenizer_dir, tmp_path):
    sizes = ["--num-hidden-layers", "4", "--hidden-size", "32", "--intermediate-size", "48", "--text-only"]
    tokenizer = put_folder(tokenizer_dir, "tokenizer")
    here, there = tmp_path / "base", f"{place.address}/base"
    main(["create", *sizes, "--tokenizer", str(tokenizer_dir), "--out", str(here)])
    main(["create", *sizes, "--tokenizer", tokenizer, "--out", there])
    assert {name: place.get(f"base/{name}") for name in contents(here)} == contents(here)
    assert find_config(there) == find_config(str(here))


def test_an_adapter_is_merged_in_a_bucket_as_on_disk(place, put_folder, tmp_path):
    config = resize(PRESETS["tiny"], {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48})
    base = create_checkpoint(config, tmp_path / "base", seed=0, dtype="float32")
    model = load(base, "float32")
    lora.add(model, lora.LoraConfig(rank=2, targets=("q_proj",)), seed=0)
    for _, layer in lora.adapted_layers(model):
        layer.lora_b[...] = layer.lora_b[...] + 0.3
    adapter = save_adapter(model, tmp_path / "adapter", base)
    there = put_folder(base, "base"), put_folder(adapter, "adapter"), f"{place.address}/merged"
    for folders in ((base, adapter, tmp_path / "merged"), there):
        model, factors, out = map(str, folders)
        main(["merge", "--model", model, "--adapter", factors, "--out", out])
    merged = contents(tmp_path / "merged")
    assert {name: place.get(f"merged/{name}") for name in merged} == merged
    assert merged["model.safetensors"] != contents(base)["model.safetensors"]


# Data


@pytest.fixture
def data(place):
    """A folder of data: two files of training and others."""
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl", "deep/c.jsonl"):
        place.put(f"data/{name}", LINES)
    place.put("data/README.md", CARD)
    place.put("data/packed.jsonl.gz", gzip.compress(LINES))
    return f"{place.address}/data"


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("/b.jsonl", {}, ["b.jsonl"]),
        ("/packed.jsonl.gz", {}, ["packed.jsonl.gz"]),
        ("/*.jsonl", {}, ["a1.jsonl", "a2.jsonl", "b.jsonl"]),
        ("/[ab]1.jsonl", {}, ["a1.jsonl"]),
        ("/**/*.jsonl", {}, ["a1.jsonl", "a2.jsonl", "b.jsonl", "c.jsonl"]),
        ("", {}, ["a1.jsonl", "a2.jsonl"]),
        ("/", {"split": "train"}, ["a1.jsonl", "a2.jsonl"]),
        ("", {"hub_files": "deep/*"}, ["c.jsonl"]),
    ],
)
def test_files_of_data(data, place, name, options, found):
    place.emulator.requests.clear()
    files = find_files(data + name, **options)
    assert [path.name for path in files] == found
    assert all(path.read_bytes() in (LINES, gzip.compress(LINES)) or path.suffix == ".gz" for path in files)
    fetched = {name.rpartition("/")[2] for _, path, name in place.emulator.requests if "alt=media" in path}
    assert fetched - {"README.md"} == set(found)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "/none.jsonl",
            {},
            r"^data\.path='gs://.*/none\.jsonl' does not exist: there is no object gs://.*/none\.jsonl",
        ),
        ("/none*.jsonl", {}, r"^data\.path='gs://.*' does not exist: gs://.*/none\*\.jsonl matches no object\.$"),
        ("", {"split": "test"}, r"^data\.path='gs://.*/data' is a folder of which the files to read are not clear"),
        ("/b.jsonl", {"split": "test"}, r"^--data\.split chooses among the files of a folder or hub dataset"),
    ],
)
def test_no_files_of_data(data, name, options, says):
    with pytest.raises(ValueError, match=says):
        find_files(data + name, **options)


def test_training_and_validation_read_the_same_as_from_disk(place, tokenizer_dir, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(LINES)
    place.put("train.jsonl", LINES)
    tokenizer, sizes = Tokenizer.from_pretrained(tokenizer_dir), {"sequence_length": 64, "sequences_per_batch": 2}
    seen = []
    for root in (str(tmp_path), place.address):
        config = DataConfig(sources=(Source(f"{root}/train.jsonl"),), eval_path=f"{root}/train.jsonl", **sizes)
        batch = next(make_batches(config, tokenizer))
        validation = read_validation(config, tokenizer, range(2), Documents(config, tokenizer))
        identity = Documents(config, tokenizer).identity()
        seen.append((batch, validation.batches, validation.identity["rows"], identity["rows"], identity))
    (batch, validation, *rest), (batch_there, validation_there, *rest_there) = seen
    for ours, theirs in zip([batch, *validation], [batch_there, *validation_there], strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert rest == rest_there


def test_validation_data_that_are_not_there_are_named(place, tokenizer_dir):
    tokenizer = Tokenizer.from_pretrained(tokenizer_dir)
    train = place.put("train.jsonl", LINES)
    config = DataConfig(train, eval_path=f"{place.address}/none.jsonl", sequence_length=64, sequences_per_batch=2)
    with pytest.raises(ValueError, match=r"^validation data: data\.eval_path='gs://.*none\.jsonl' does not exist"):
        read_validation(config, tokenizer, range(2), Documents(config, tokenizer))


def test_prompts(place, tokenizer_dir):
    tokenizer = Tokenizer.from_pretrained(tokenizer_dir)
    prompts = place.put("prompts.jsonl", b'{"text": "say"}\n' * 2)
    assert len(read_requests(prompts, tokenizer, enable_thinking=None)) == 2
    with pytest.raises(gcs.ObjectNotFoundError, match=r"none\.jsonl: there is no such object in the bucket\.$"):
        read_requests(f"{place.address}/none.jsonl", tokenizer, enable_thinking=None)


# Evaluation


def test_responses_are_scored_with_data_of_a_bucket(place, capsys):
    questions = [{"question": f"{n}+{n}?", "answer": f"work\n#### {2 * n}"} for n in range(3)]
    place.put("data/gsm8k/test.jsonl", "".join(json.dumps(row) + "\n" for row in questions).encode())
    responses = place.put("responses.jsonl", b'{"id": 1, "response": "#### 2"}\n{"id": 2, "response": "#### 5"}\n')
    score(["--task", "gsm8k", "--responses", responses, "--data-dir", f"{place.address}/data/"])
    assert "gsm8k  accuracy  50.00" in capsys.readouterr().out


def test_no_data_of_a_task(place):
    place.put("data/other/test.jsonl", b"{}")
    with pytest.raises(
        ValueError, match=r"^gs://.*/data/qa is not a folder; put the data of qa at gs://.*/data/qa/test"
    ):
        read_split("qa", Data(splits=("test",)), f"{place.address}/data", "test", or_any=True)
    place.put("data/qa/a.jsonl", b"{}")
    place.put("data/qa/b.jsonl", b"{}")
    with pytest.raises(ValueError, match=r"^gs://.*/data/qa holds \['a\.jsonl', 'b\.jsonl'\]; put the data"):
        read_split("qa", Data(splits=("test",)), f"{place.address}/data", "test", or_any=True)


def test_the_sentence_splitter_is_looked_for_in_the_bucket(place, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    place.put("data/nltk_data/corpora/x", b"1")
    with pytest.raises(ValueError, match=r"nltk\.downloader -d ~/nltk_data punkt_tab"):
        ifeval.prepare(f"{place.address}/data")
    assert [Path(folder).name for folder in nltk.data.path] == ["nltk_data"]
    assert (Path(nltk.data.path[0]) / "corpora" / "x").is_file()


# Other addresses


@pytest.mark.parametrize("find", [find_folder, find_file, find_files, find_config])
@pytest.mark.parametrize("path", ["s3://bucket/x", "http://host/x", "hf://datasets/org/name", "file:///x", "gs:/b/x"])
def test_addresses_of_other_kinds(find, path):
    with pytest.raises(ValueError, match=r"addresses of the kind .*/ are not supported; give gs://BUCKET/NAME, a path"):
        find(path)


@pytest.mark.parametrize("address", ["gs://bucket/x", "s3://bucket/x"])
@pytest.mark.parametrize(
    "make",
    [
        lambda address: EvalConfig(out=address),
        lambda address: ScoreConfig(task="qa", responses="r.jsonl", out=address),
    ],
    ids=["eval.run", "eval.score"],
)
def test_reports_are_written_to_paths(make, address):
    with pytest.raises(ValueError, match=f"^{address} is an address, and a path on this machine is needed here"):
        make(address)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["generate", "--model", "m", "hello", "--output", "gs://b/x.jsonl"],
            "argument --output: gs://b/x.jsonl is an",
        ),
        (["generate", "--model", "s3://b/m", "hello"], "s3://b/m: addresses of the kind s3:// are not supported"),
        (["merge", "--model", "m", "--adapter", "a", "--out", "s3://b/x"], "s3://b/x: addresses of the kind s3://"),
        (["create", "--tokenizer", "https://host/t", "--out", "out"], "https://host/t: addresses of the kind"),
    ],
)
def test_commands_refuse_other_addresses(capsys, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())
