"""How every command asks the agent of this device: endpoints, tokens, and one HTTP exchange.

CommandFailed (`exits`)
├── AgentAway       nobody answers at the endpoint
└── AgentRefused    the agent answered with an error (`status`)
"""

import argparse
import os
from http.client import HTTPConnection, HTTPException
from typing import Any

from muster_agent.cli.exits import FAILED, UNREACHABLE, USAGE, CommandFailed

NOT_FOUND = 404
TOKEN_VARIABLE = "MUSTER_AGENT_TOKEN"
TIMEOUT_S = 60.0


class AgentAway(CommandFailed):
    """Nobody answers."""

    def __init__(self, message: str) -> None:
        super().__init__(UNREACHABLE, message)


class AgentRefused(CommandFailed):
    """The agent answered with an error."""

    def __init__(self, status: int, said: object) -> None:
        super().__init__(FAILED, f"the agent answers {status}: {said}")
        self.status = status


def token() -> str | None:
    """Return the caller's token, from the environment: a command line is for everybody to read."""
    return os.environ.get(TOKEN_VARIABLE) or None


def endpoint_of(options: argparse.Namespace, *, prefer_unix: bool = False) -> str:
    """Return where the agent listens: as given, as it said when it started, or as it is configured."""
    if options.endpoint:
        given = str(options.endpoint)
        return f"unix:{given}" if given.startswith("/") else given
    from muster_agent.config import read_config
    from muster_agent.errors import ConfigInvalid

    try:
        config = read_config(options.config, os.environ)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, f"{error} (or give --endpoint)") from error
    unix = config.http.unix_socket
    if config.http.address is None or (prefer_unix and unix is not None and unix.exists()):
        return f"unix:{unix}"
    host, port = config.http.address
    if port == 0:
        try:
            return (config.data_dir / "endpoint").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise AgentAway(f"no agent has run in {config.data_dir} yet; start it first") from error
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_connection(endpoint: str, timeout_s: float = TIMEOUT_S) -> HTTPConnection:
    """Return a connection, not connected yet. Raises CommandFailed when `endpoint` is none."""
    if endpoint.startswith("unix:"):
        return _unix_connection(endpoint.removeprefix("unix:"), timeout_s)
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(endpoint)
        if parts.scheme == "http" and parts.hostname:
            return HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)
    except ValueError:
        pass
    raise CommandFailed(USAGE, f"{endpoint!r} is neither http://host:port nor unix:/path")


def ask_raw(
    endpoint: str,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    content_type: str = "application/json",
    token: str | None = None,
) -> bytes:
    """Return the body of the agent's answer.

    Raises:
        AgentAway: nobody answers.
        AgentRefused: it is an error.
    """
    headers = {"Content-Type": content_type}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = open_connection(endpoint)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException) as error:
        raise AgentAway(f"no agent answers at {endpoint} ({error}); is it running?") from error
    finally:
        connection.close()
    if response.status != 200:
        answer = _parsed(endpoint, raw)
        raise AgentRefused(response.status, answer.get("error", answer) if isinstance(answer, dict) else answer)
    return raw


def ask(endpoint: str, method: str, path: str, body: bytes | None = None, *, token: str | None = None) -> Any:
    """Return the agent's JSON answer. Raises as `ask_raw`."""
    return _parsed(endpoint, ask_raw(endpoint, method, path, body, token=token))


def _parsed(endpoint: str, raw: bytes) -> Any:
    import json

    try:
        return json.loads(raw)
    except ValueError as error:
        raise AgentAway(f"what answers at {endpoint} is no agent") from error


def _unix_connection(path: str, timeout_s: float) -> HTTPConnection:
    import socket

    class UnixConnection(HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout_s)
            self.sock.connect(path)

    return UnixConnection("localhost")
