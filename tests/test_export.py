"""``qwen35 export``: the base and its name, the hub. What the files do elsewhere: tests/train/test_export.py."""

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import jax.numpy as jnp
import optax
import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax import lora
from qwen35_jax.cli import main
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.load import load
from qwen35_jax.runs import identify_base
from tests.conftest import REPO
from tests.hf.helpers import small_config
from train.checkpoint import Checkpoints
from train.observe.health import new_health
from train.state import TrainState, split_model

CONFIG = lora.LoraConfig(rank=2, targets=("attention", "mtp"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base checkpoint, ``base``, and an adapter run of conversations on it, ``run``."""
    work = tmp_path_factory.mktemp("work")
    tokenizer = build_tiny_tokenizer(["user assistant\n"] * 4, work / "tokenizer", vocab_size=300)
    create_checkpoint(small_config(), work / "base", dtype="float32", tokenizer_from=tokenizer)
    model = load(work / "base", "float32")
    lora.add(model, CONFIG, seed=0)
    _, params, _ = split_model(model, adapters=True, train_mtp=True)
    checkpoints = Checkpoints(work / "run" / "checkpoints", keep=1)
    checkpoints.save(TrainState(jnp.array(7), params, optax.adam(1e-3).init(params), new_health()), {})
    checkpoints.close()
    identity = identify_base(work / "base")._asdict() | {"data": {"rows": 3}, "conversations": True}
    recipe = {"model": {"path": str(work / "base"), "dtype": "float32"}, "lora": dataclasses.asdict(CONFIG)}
    (work / "run" / "config.json").write_text(json.dumps({"recipe": recipe, "identity": identity}))
    (work / "run" / "metrics.jsonl").write_text('{"step": 6, "loss": 9.0}\n{"step": 7, "loss": 0.25}\n{"step"')
    return work


@pytest.fixture
def work(trained, tmp_path):
    """A copy of it, whose run names the copied base."""
    copy = shutil.copytree(trained, tmp_path / "work")
    _change_record(copy, lambda record: record["recipe"]["model"].update(path=str(copy / "base")))
    return copy


def _change_record(work, change):
    record = json.loads((work / "run" / "config.json").read_text())
    change(record)
    (work / "run" / "config.json").write_text(json.dumps(record))


def _export(work, *options, out="out"):
    main(["export", str(work / "run"), "--out", str(work / out), *options])
    return work / out


def _refused(capsys, work, *options):
    with pytest.raises(SystemExit) as stop:
        _export(work, *options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and not (work / "out").exists()
    return error


def _append(name):
    return lambda base: (base / name).write_text((base / name).read_text() + " ")


def _retrain(base):
    with (base / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"abcd")


def _remove_the_template_and_retrain(base):
    (base / "chat_template.jinja").unlink()
    _retrain(base)


CHANGES = {
    "chat_template.jinja": _append("chat_template.jinja"),
    "tokenizer.json": _append("tokenizer.json"),
    "tokenizer_config.json": _append("tokenizer_config.json"),
    "weights or config.json": _retrain,
    "chat_template.jinja, weights or config.json": _remove_the_template_and_retrain,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_base_that_changed_since_is_refused_by_name(work, capsys, name):
    CHANGES[name](work / "base")
    error = _refused(capsys, work)
    assert all(part in error for part in name.split(", "))
    assert f"{work / 'base'} is not what the run started from" in error


def test_a_base_that_moved_or_grew_other_files_is_the_same(work):
    (work / "base" / "notes.txt").write_text("not read")
    _export(work)
    (work / "base").rename(work / "moved")
    _change_record(work, lambda record: record["recipe"]["model"].update(path=str(work / "moved")))
    _export(work, out="again")


def test_records_of_earlier_versions_have_no_identity(work):
    _change_record(work, lambda record: record.pop("identity"))
    _append("chat_template.jinja")(work / "base")
    out = _export(work)
    # Nothing says that conversations were trained, so nothing is changed for them.
    assert not (out / "generation_config.json").exists()


def test_the_base_is_named_as_the_user_named_it(work, monkeypatch):
    monkeypatch.chdir(work)
    _change_record(work, lambda record: record["recipe"]["model"].update(path="base"))
    assert _settings(_export(work)) == ("base", None)
    assert _settings(_export(work, "--base", "org/base@v2", out="named")) == ("org/base", "v2")


def test_a_hub_id_is_named_with_its_revision_and_never_the_cache(work, monkeypatch):
    cached = work / "hub" / "models--org--base" / "snapshots" / "0123abcd"
    shutil.copytree(work / "base", cached)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(cached))
    for number, path in enumerate(("org/base", "org/base@main", str(cached))):
        _change_record(work, lambda record, path=path: record["recipe"]["model"].update(path=path))
        out = _export(work, out=f"out{number}")
        assert _settings(out) == ("org/base", "0123abcd")
        card = (out / "README.md").read_text()
        assert card.startswith('---\nbase_model: "org/base"\nbase_model_revision: "0123abcd"\nlibrary_name: "peft"\n')
        assert ".from_pretrained('org/base', revision='0123abcd', generation_config=" in card
        assert "--model org/base@0123abcd" in card
        assert str(work / "hub") not in card


def _settings(folder):
    content = json.loads((folder / "adapter_config.json").read_text())
    return content["base_model_name_or_path"], content["revision"]


def test_metrics_of_the_exported_step_are_on_the_card(work):
    card = (_export(work) / "README.md").read_text()
    assert "## Metrics of step 7\n\n| metric | value |\n|---|---|\n| loss | 0.25 |" in card
    (work / "run" / "metrics.jsonl").unlink()
    assert "None were recorded." in (_export(work, out="again") / "README.md").read_text()


def test_after_plain_text_an_adapter_changes_nothing_of_its_base(work):
    _change_record(work, lambda record: record["identity"].update(conversations=False))
    out = _export(work)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (work / "base" / name).read_bytes()
    assert not (out / "generation_config.json").exists()
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    assert len(code) == 2
    for block in code:
        compile(block, "card", "exec")
        assert "GenerationConfig" not in block and "Once upon a time" in block
    # A merge of it is the base with other weights.
    main(["merge", "--model", str(work / "base"), "--adapter", str(out), "--out", str(work / "merged")])
    for path in (work / "base").iterdir():
        assert path.suffix == ".safetensors" or (work / "merged" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (work / "merged").iterdir()} == {path.name for path in (work / "base").iterdir()}


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs."""

    protocol_version = "HTTP/1.1"

    def _answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _is_known(self):
        known = self.headers.get("Authorization") == "Bearer hf_right"
        if not known:
            self._answer({"error": "Invalid username or password."}, 401)
        return known

    def do_GET(self):
        if self._is_known():
            self._answer({"id": "org/tuned", "private": self.server.private, "siblings": [], "sha": "1"})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/org/tuned"
        if not self._is_known():
            return
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(raw))
            self._answer({"url": address, "name": "org/tuned", "id": "org/tuned"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(raw)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line)["value"] for line in raw.splitlines()]
            self.server.files |= {
                value["path"]: base64.b64decode(value["content"]) for value in lines if "content" in value
            }
            self._answer({"success": True, "commitUrl": f"{address}/commit/1", "commitOid": "1"})
        else:
            self._answer({"errors": [], "warnings": []})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.created, server.files, server.private = [], {}, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _push(hub, work, *options, token="hf_right"):
    """Runs the command against the hub in a process of its own: the client reads its address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "qwen35_jax.cli", "export", work / "run", "--out", work / "out", *options]
    return subprocess.run(list(map(str, command)), cwd=REPO, env=environment, capture_output=True, text=True)


def test_push_uploads_the_folder_to_a_private_repository(hub, work):
    result = _push(hub, work, "--push", "org/tuned", "--base", "org/base")
    assert result.returncode == 0, result.stderr
    # The client has said it in either way.
    assert [each.get("visibility") == "private" or each.get("private") for each in hub.created] == [True]
    paths = [path for path in (work / "out").rglob("*") if path.is_file()]
    assert hub.files == {path.relative_to(work / "out").as_posix(): path.read_bytes() for path in paths}
    assert {"README.md", "adapter_model.safetensors", "generation_config.json"} <= hub.files.keys()
    assert result.stdout.endswith("/org/tuned/commit/1\n")


def test_push_is_refused_before_anything_is_written(hub, work):
    for private, name, token, wanted in (
        (False, "org/tuned", "hf_right", "org/tuned exists on the hub and is public; give --public"),
        (True, "org/tuned", "hf_wrong", "cannot push to org/tuned: "),
        (True, "a/b/c", "hf_right", "cannot push to a/b/c: Repo id must be"),
    ):
        hub.private = private
        result = _push(hub, work, "--merged", "--push", name, token=token)
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and wanted in result.stderr, result.stderr
        assert not (work / "out").exists() and not hub.files


def test_push_without_a_hub_or_of_what_nobody_can_load(work, capsys):
    error = _refused(capsys, work, "--push", "org/tuned")
    assert f"base {work / 'base'} is a folder of yours; give --base ORG/NAME" in error
    # Tests run offline.
    assert "cannot push to org/tuned: " in _refused(capsys, work, "--push", "org/tuned", "--merged")
    assert "--public belongs to --push" in _refused(capsys, work, "--public")
