"""Telling systemd: ready, alive, stopping. Nothing happens where there is no systemd.

Source: sd_notify(3); one datagram to the socket that `NOTIFY_SOCKET` names.
"""

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """systemd, or nobody."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        micros = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_s = int(micros) / 1e6 if micros.isdigit() and mine and self._address else None
        """How often it wants to hear `alive`, at the latest; None when it does not."""

    def ready(self) -> None:
        self._say(b"READY=1")

    def alive(self) -> None:
        self._say(b"WATCHDOG=1")

    def stopping(self) -> None:
        self._say(b"STOPPING=1")

    def _say(self, message: bytes) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)  # The decisions of the device do not wait for it.
                sock.sendto(message, self._address)
        except OSError:
            return  # It restarts us if it really missed something.
