"""One connection to a broker, by hand: does it answer, and take over the client id of somebody who has to go.

A dozen bytes of MQTT 3.1.1 need no client library, no thread and no reconnecting. What stays connected is `Link`.
"""

import os
import socket
import ssl
from pathlib import Path

# What a CONNECT packet holds behind its length: protocol, level, flags (clean session), keepalive 10 s, client id.
_PROTOCOL = b"\x00\x04MQTT"
_LEVEL_311 = b"\x04"
_LEVEL_UNKNOWN = b"\x7f"
_CLEAN = b"\x02\x00\x0a"
_ACCEPTED = b"\x20\x02\x00\x00"
_LEVEL_REFUSED = b"\x20\x02\x00\x01"
_DISCONNECT = b"\xe0\x00"


def answers(port: int, timeout_s: float) -> bool:
    """Whether something on 127.0.0.1:`port` takes an MQTT connection: one real CONNECT, and a goodbye."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as sock:
            return _connect(sock, _LEVEL_311, "", _ACCEPTED)
    except OSError:
        return False


def answers_tls(host: str, port: int, name: str, context: ssl.SSLContext, timeout_s: float) -> bool:
    """Whether a broker takes our certificate, and speaks MQTT behind it.

    It asks for a level of the protocol that does not exist, and the broker's answer to that is what we wait for: with a
    real CONNECT the broker might give us the client id of our certificate, and cut the connection that has it.

    Args:
        name: what stands in the broker's certificate.
    """
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as sock,
            context.wrap_socket(sock, server_hostname=name) as tls,
        ):
            return _connect(tls, _LEVEL_UNKNOWN, "", _LEVEL_REFUSED)
    except OSError:
        return False


def kick(path: Path, client_id: str, name: str, context: ssl.SSLContext, timeout_s: float) -> bool:
    """Take the client id over on a listener that is a socket in a folder, and leave; whether that worked.

    The broker cuts the connection that had the id and forgets its session.
    """
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            _connect_unix(sock, path)
            with context.wrap_socket(sock, server_hostname=name) as tls:
                return _connect(tls, _LEVEL_311, client_id, _ACCEPTED)
    except OSError:
        return False


def _connect(sock: socket.socket, level: bytes, client_id: str, expected: bytes) -> bool:
    text = client_id.encode()
    body = _PROTOCOL + level + _CLEAN + len(text).to_bytes(2, "big") + text
    assert len(body) < 128, "the length of a packet of ours is one byte"
    sock.sendall(bytes((0x10, len(body))) + body)
    reply = b""
    while len(reply) < len(expected) and (more := sock.recv(len(expected) - len(reply))):
        reply += more
    if reply == _ACCEPTED:
        sock.sendall(_DISCONNECT)
    return reply == expected


def _connect_unix(sock: socket.socket, path: Path) -> None:
    """Connect, also where the path is longer than the 107 bytes that an address of a socket has."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # Only Linux has this short name for a folder that is open.
            short = Path(f"/proc/self/fd/{folder}") / path.name
            sock.connect(str(short if short.parent.exists() else path))
        finally:
            os.close(folder)
    except ValueError as error:  # The path is too long.
        raise OSError(str(error)) from error
