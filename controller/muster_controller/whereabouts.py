"""Where the controller of a data folder is: `server.json`, written while it runs, read by the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from muster_controller.registry import durable

FILE = "server.json"


@dataclass(frozen=True)
class Running:
    """What `server.json` says."""

    url: str
    broker_url: str
    pid: int
    fleet: str
    version: str
    device_url: str = ""
    """Of the device port."""


def publish_running(data: Path, running: Running) -> Callable[[], None]:
    """Write where the controller is; return how to take it back. A killed controller leaves it behind."""
    path = data / FILE
    durable.write(path, msgspec.json.format(msgspec.json.encode(running), indent=1), 0o600)
    return lambda: path.unlink(missing_ok=True)


def read_running(data: Path) -> Running | None:
    """Return where the controller of this data folder is, if one has said so."""
    try:
        return msgspec.json.decode((data / FILE).read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
