"""The command and the page that describes it."""

import socket

import pytest

from qwen35_jax.cli import main
from qwen35_jax.commands import serve as command
from qwen35_jax.serving.app import make_app
from qwen35_jax.serving.serve import bind
from tests.commands import fenced_blocks
from tests.conftest import REPO
from tests.serving.conftest import running

PAGE = (REPO / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "TAKEN"], "cannot listen on 127.0.0.1, port TAKEN: Address already in use; choose another --port"),
        (["--port", "70000"], "cannot listen on 127.0.0.1, port 70000: bind(): port must be 0-65535; choose another"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid, port 8000: "),
        (["--slots", "0"], "--slots 0; give at least 1."),
        (["--grace-seconds", "nan"], "--grace-seconds nan; give at least 0."),
        (["--max-waiting", "-1"], "--max-waiting -1; give at least 0."),
        (["--port", "0"], "no/such/model"),
        (["--prot", "0"], "unknown options: --prot 0. Did you mean --port?"),
    ],
)
def test_a_wrong_option_ends_in_one_line_before_the_model_is_loaded(capsys, options, message):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = [option.replace("TAKEN", port) for option in options]
        with pytest.raises(SystemExit) as stopped:
            main(["serve", "--model", "no/such/model", *options])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message.replace("TAKEN", port) in line


def test_a_port_is_taken_as_soon_as_it_is_bound():
    with bind("127.0.0.1", 0) as sock, pytest.raises(ValueError, match="Address already in use"):
        bind("127.0.0.1", sock.getsockname()[1])


def test_an_open_address_without_a_key_is_warned_of(capsys, monkeypatch):
    monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        with pytest.raises(SystemExit):
            main(["serve", "--model", "no/such/model", "--port", "0", "--host", host])
        assert ("warning: whoever reaches 0.0.0.0" in capsys.readouterr().err) == warned


def test_the_examples_of_the_page_run(scripted, capsys, monkeypatch):
    client_example, server_example = fenced_blocks(PAGE, "python")
    engine, _ = scripted("4+8=2\n</think>\n\n7<|im_end|>")
    with running(make_app(engine, "quickstart")) as address:
        exec(client_example.replace("http://127.0.0.1:8000", address), {})
    assert capsys.readouterr().out == "4+8=2\n7\n"
    served = []
    monkeypatch.setattr("qwen35_jax.serving.serve.serve", lambda *given, **settings: served.append((given, settings)))
    monkeypatch.setattr("qwen35_jax.serving.serve.bind", lambda host, port: (host, port))
    exec(server_example, {"engine": engine})
    [((made, address), settings)] = served
    assert made.state.service.name == "mine" and address == ("127.0.0.1", 8000) and settings == {"grace_seconds": 25}
