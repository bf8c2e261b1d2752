"""How an agent does, asked at its own endpoint: what `install` waits for and `upgrade` compares. It changes nothing."""

import json
from http.client import HTTPException
from typing import Any

import msgspec

from muster_agent.config import AgentConfig

ASK_S = 5.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at an agent showed."""

    is_up: bool = False
    version: str = ""
    endpoint: str = ""
    is_online: bool = False
    """Whether the broker is there."""
    serving: tuple[str, ...] = ()
    """Each model with the version that serves, such as `digits 1.0.0`, sorted."""
    assigned: tuple[str, ...] = ()
    """Models that the device knows of, sorted."""
    problem: str = ""
    """Why nobody answered, or what went wrong last."""


def look(config: AgentConfig, token: str | None) -> Health:
    """Return what the agent of `config` says of itself now."""
    endpoint = ""
    try:
        endpoint = endpoint_of(config)
        return _health(endpoint, json.loads(_ask(endpoint, token)))
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        return Health(endpoint=endpoint, problem=str(error) or type(error).__name__)


def endpoint_of(config: AgentConfig) -> str:
    """Return where the agent listens, as configured, or as it said when it took a free port. Raises OSError."""
    if config.http.address is None:
        return f"unix:{config.http.unix_socket}"
    host, port = config.http.address
    if port == 0:
        return (config.data_dir / "endpoint").read_text(encoding="utf-8").strip()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _ask(endpoint: str, token: str | None) -> bytes:
    from muster_agent.cli.asking import open_connection

    connection = open_connection(endpoint, ASK_S)
    try:
        connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX)
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"it answers {response.status}")
    return body


def _health(endpoint: str, said: Any) -> Health:
    models = said["device"]["models"]
    return Health(
        is_up=True,
        version=str(said["agent"]),
        endpoint=endpoint,
        is_online=bool(said["online"]),
        serving=tuple(sorted(f"{name} {model['version']}" for name, model in said["models"].items())),
        assigned=tuple(sorted(str(model["model"]) for model in models)),
        problem="; ".join(str(model["last_error"]) for model in models if model.get("last_error")),
    )
