"""What a controller takes of its machine: its folder, for itself alone, and a port for the page and the API."""

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from muster_controller.api.guard import LOOPBACK
from muster_controller.config import HOST, ServerConfig
from muster_controller.errors import ServerUnavailable

LOCK_FILE: Final = "lock"
ANY_HOST: Final = ("0.0.0.0", "::")


def lock(data: Path) -> Callable[[], None]:
    """Take the data folder for this process and return how to give it back; the system does so when we die."""
    descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ServerUnavailable(f"another controller uses {data}; end it, or choose another with --data") from error
    return lambda: os.close(descriptor)


def listen(config: ServerConfig) -> socket.socket:
    port, host = config.port, config.host
    if host not in LOOPBACK and config.tls is None:
        raise ServerUnavailable(
            f"--host {host} is beyond this machine, and would carry passwords in the clear; give --tls-cert and"
            " --tls-key, or --tls-fleet-ca, or put a proxy that does TLS on this machine (with --name)"
        )
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServerUnavailable(
            f"port {port} on {host} cannot be used ({error.strerror}); end what has it, or choose another with --port"
        ) from error
    return listener


def page_url(config: ServerConfig, port: int) -> str:
    """Return where operators find the page and the API."""
    is_any = config.host in ANY_HOST
    host = config.names[0] if config.names and config.tls else HOST if is_any else config.host
    return f"{'https' if config.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
