"""Mosquitto as the embedded broker: where the program is, and what its configuration says.

Starts nothing; `embedded` does. It works with 2.0 (Debian 12) and 2.1.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

EXECUTABLE = "mosquitto"
INSTALL_HINT = "install the package `mosquitto`"
_EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # Not on the PATH of every user.


@dataclass(frozen=True)
class Mosquitto:
    """A Mosquitto program that was found."""

    executable: Path

    @classmethod
    def find(cls) -> Self | None:
        """Return the one on the PATH, or where packages put it; None where there is none."""
        folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_FOLDERS))
        found = shutil.which(EXECUTABLE, path=folders)
        return cls(Path(found)) if found else None

    def command(self, configuration: Path) -> list[str]:
        """Return what runs it."""
        return [str(self.executable), "-c", str(configuration)]

    def configuration(self, folder: Path, port: int) -> str:
        """Return its configuration file.

        Args:
            folder: absolute, exists; the database and the log go there.
            port: on 127.0.0.1.
        """
        lines = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",  # Only this machine reaches the listener.
            "set_tcp_nodelay true",
            "persistence true",
            f"persistence_location {folder}/",
            "persistence_file mosquitto.db",
            # A kill -9 loses what came since the last save; stock settings save every half hour.
            "autosave_interval 5",
            "max_inflight_messages 200",
            "max_queued_messages 100000",
            f"max_queued_bytes {256 * 1024 * 1024}",
            f"max_packet_size {1024 * 1024}",
            "persistent_client_expiration 2m",
            f"log_dest file {folder / 'mosquitto.log'}",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "connection_messages false",  # Ten thousand devices would fill the disk with them.
        ]
        if os.geteuid() == 0:
            # Root's Mosquitto turns into the user `mosquitto`, who may not read this folder.
            lines.append("user root")
        return "\n".join(lines) + "\n"
