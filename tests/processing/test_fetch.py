"""Downloads: what is refused, and that what has been checked is what is connected to."""

import http.server
import socket
import threading
import time

import pytest

from qwen35_jax.processing.fetch import _is_public, fetch
from qwen35_jax.processing.media import MediaError, MediaPolicy

HERE = MediaPolicy(allow_urls=True, allow_private_addresses=True, max_bytes=100_000, timeout=5)
PUBLIC_ONLY = MediaPolicy(allow_urls=True, timeout=5)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        answer = getattr(self, f"do_{self.path.strip('/').split('?')[0]}", None)
        if answer is None:
            self.send_error(404)
            return
        answer()

    def send(self, body, *, length=None, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def do_whole(self):
        self.send(b"picture", length=7)

    def do_short(self):
        self.send(b"picture", length=70)

    def do_large(self):
        self.send(b"", length=10**9)

    def do_endless(self):
        self.send(b"")
        try:
            while True:
                self.wfile.write(bytes(10_000))
        except OSError:
            pass

    def do_drip(self):
        self.send(b"", length=1000)
        try:
            while True:
                self.wfile.write(b".")
                time.sleep(0.02)
        except OSError:
            pass

    def do_again(self):
        self.send(b"", status=302, Location="/again")

    def do_moved(self):
        self.send(b"", status=302, Location="/whole?%C3%A9 x")

    def do_inwards(self):
        self.send(b"", status=302, Location=f"http://127.0.0.1:{self.server.server_port}/whole")

    def do_elsewhere(self):
        self.send(b"", status=302, Location="file:///etc/passwd")


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def outside(server, monkeypatch):
    """Makes the server the public machine 1.1.1.1, called photos.example; returns the addresses that were dialled."""
    dialled = []
    resolved = {"photos.example": ["1.1.1.1"], "rebinding.example": ["1.1.1.1"]}
    connect = socket.create_connection

    def getaddrinfo(host, port, *_, **__):
        found = resolved.get(host, [host])
        # The second answer is another, as that of a name server that means ill.
        resolved["rebinding.example"] = ["127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    def create_connection(address, *args, **kwargs):
        dialled.append(address[0])
        return connect(("127.0.0.1", server.server_port), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    return dialled


def address(server, path, host="127.0.0.1"):
    return f"http://{host}:{server.server_port}/{path}"


def test_what_is_there_is_downloaded(server):
    assert fetch(address(server, "whole"), HERE) == b"picture"
    assert fetch(address(server, "moved"), HERE) == b"picture"
    assert server.asked[-1][0] == "/whole?%C3%A9%20x"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "the server answers 404"),
        ("short", "the connection ended after 7 of 70 bytes"),
        ("large", "is larger than max_bytes=100000"),
        ("endless", "is larger than max_bytes=100000"),
        ("again", "is redirected more than 5 times"),
        ("elsewhere", r"'file:///etc/passwd' is not fetched: only http:// and https://"),
    ],
)
def test_what_cannot_be_downloaded_is_one_clear_line(server, path, message):
    with pytest.raises(MediaError, match=message) as caught:
        fetch(address(server, path), HERE)
    assert "\n" not in str(caught.value)


def test_a_server_that_drips_is_left_at_the_deadline(server):
    with pytest.raises(MediaError, match=r"took longer than timeout=0\.3 seconds"):
        fetch(address(server, "drip"), MediaPolicy(allow_urls=True, allow_private_addresses=True, timeout=0.3))


def test_private_addresses_are_refused(server):
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(MediaError, match="is not public"):
            fetch(address(server, "whole", host), PUBLIC_ONLY)
    assert not server.asked


def test_a_redirect_to_a_private_address_is_refused(server, outside):
    assert fetch("http://photos.example/whole", PUBLIC_ONLY) == b"picture"
    with pytest.raises(MediaError, match=r"'127\.0\.0\.1' is not fetched: its address 127\.0\.0\.1 is not public"):
        fetch("http://photos.example/inwards", PUBLIC_ONLY)
    assert outside == ["1.1.1.1"] * 2
    assert server.asked == [("/whole", "photos.example"), ("/inwards", "photos.example")]


def test_the_address_that_was_checked_is_dialled(outside):
    assert fetch("http://rebinding.example/whole", PUBLIC_ONLY) == b"picture"
    assert outside == ["1.1.1.1"]
    with pytest.raises(MediaError, match="is not public"):
        fetch("http://rebinding.example/whole", PUBLIC_ONLY)


PRIVATE_4 = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"]
PRIVATE_6 = ["::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]


@pytest.mark.parametrize("text", [*PRIVATE_4, *PRIVATE_6])
def test_addresses_that_the_internet_does_not_reach(text):
    assert not _is_public(text)


@pytest.mark.parametrize("text", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(text):
    assert _is_public(text)


@pytest.mark.parametrize("url", ["http:///a", "http://[::1", "http://a:b/", "http://exa mple.org/", "http://\udcff/"])
def test_addresses_that_are_none(url):
    with pytest.raises(MediaError) as caught:
        fetch(url, MediaPolicy(allow_urls=True, timeout=1))
    assert "\n" not in str(caught.value)
