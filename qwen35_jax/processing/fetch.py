"""Downloads an image or a video from an address that a stranger may have written.

A name is resolved once, every address that it has is checked, and the connection goes to a checked address: a name
that changes its address between the check and the connection gains nothing. Each redirect is checked in the same way.
Proxies of the environment are not used, since a proxy would connect where nobody has checked.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from typing import cast

from qwen35_jax.processing.media import MediaError, MediaPolicy, describe

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK = 1 << 16
_HEADERS = {"User-Agent": "qwen35-jax", "Accept": "image/*,video/*,*/*;q=0.5", "Connection": "close"}


def fetch(url: str, policy: MediaPolicy) -> bytes:
    """Downloads what an ``http://`` or ``https://`` address names, redirects followed.

    Raises:
      MediaError: it leads to a private address, is larger than ``policy.max_bytes``, takes longer than
        ``policy.timeout``, or cannot be had.
    """
    deadline = time.monotonic() + policy.timeout
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            found = _get(url, policy, deadline)
            if isinstance(found, bytes):
                return found
            url = urllib.parse.urljoin(url, found)
    except (OSError, http.client.HTTPException, ValueError) as err:
        if isinstance(err, MediaError):
            raise
        # What ends a connection at the deadline is the timer, and the error that follows says little.
        late = time.monotonic() >= deadline
        reason = f"it took longer than timeout={policy.timeout:g} seconds" if late else f"{type(err).__name__}: {err}"
        raise MediaError(f"{describe(url)} cannot be fetched: {' '.join(reason.split())}.") from err
    raise MediaError(f"{describe(url)} cannot be fetched: it is redirected more than {_MOST_REDIRECTS} times.")


def _get(url: str, policy: MediaPolicy, deadline: float) -> bytes | str:
    """Returns the content of an address, or the address that it redirects to."""
    parsed = urllib.parse.urlsplit(url)
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise MediaError(f"{describe(url)} is not fetched: only http:// and https:// addresses of a host are.")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    connection = http.client.HTTPConnection(parsed.hostname, port)
    sock = connection.sock = _connect(parsed.hostname, port, parsed.scheme == "https", policy, deadline)
    # A timeout of the socket counts anew with each byte that arrives; this one ends a connection that drips.
    timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut, [sock])
    timer.daemon = True
    timer.start()
    try:
        path = urllib.parse.quote(parsed.path or "/", safe="/%:@!$&'()*+,;=~")
        query = urllib.parse.quote(parsed.query, safe="/%:@!$&'()*+,;=~?")
        host = f"[{parsed.hostname}]" if ":" in parsed.hostname else parsed.hostname.encode("idna").decode()
        headers = _HEADERS | {"Host": host if parsed.port is None else f"{host}:{port}"}
        connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
        return _read(url, connection.getresponse(), policy, deadline)
    finally:
        timer.cancel()
        connection.close()


def _read(url: str, response: http.client.HTTPResponse, policy: MediaPolicy, deadline: float) -> bytes | str:
    location = response.getheader("Location")
    if response.status in _REDIRECTS and location:
        return location
    if response.status != 200:
        raise MediaError(f"{describe(url)} cannot be fetched: the server answers {response.status} {response.reason}.")
    too_large = MediaError(f"{describe(url)} is larger than max_bytes={policy.max_bytes}; give a smaller file.")
    length = response.length
    if length is not None and length > policy.max_bytes:
        raise too_large
    blocks, size = [], 0
    while block := response.read1(_BLOCK):
        size += len(block)
        if size > policy.max_bytes:
            raise too_large
        blocks.append(block)
    if time.monotonic() >= deadline:
        raise TimeoutError
    if length is not None and size < length:
        raise MediaError(f"{describe(url)} cannot be fetched: the connection ended after {size} of {length} bytes.")
    return b"".join(blocks)


def _connect(host: str, port: int, secure: bool, policy: MediaPolicy, deadline: float) -> socket.socket:
    addresses = [cast(str, info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not policy.allow_private_addresses:
        private = [address for address in addresses if not _is_public(address)]
        if private:
            raise MediaError(
                f"{host!r} is not fetched: its address {private[0]} is not public; give a data URI, or set "
                "allow_private_addresses in Python if it may be fetched."
            )
    failure: OSError | None = None
    for address in dict.fromkeys(addresses):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        try:
            sock = socket.create_connection((address, port), timeout=remaining)
            return ssl.create_default_context().wrap_socket(sock, server_hostname=host) if secure else sock
        except ssl.SSLError:
            raise
        except OSError as err:
            failure = err
    raise failure or OSError(f"{host} has no address")


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    # 2002::/16 holds any IPv4 address, a private one too.
    is_tunnel = isinstance(address, ipaddress.IPv6Address) and address.sixtofour is not None
    return address.is_global and not (address.is_multicast or address.is_reserved or is_tunnel)


def _shut(sock: socket.socket) -> None:
    # An error says that the connection has ended by itself.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
