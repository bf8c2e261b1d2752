"""Mosquitto as the embedded broker: where the program is, and what its configuration says.

Starts nothing; `embedded` does. It works with 2.0 (Debian 12) and 2.1.

How a secured one knows its clients: the certificate's common name becomes the user name (`use_identity_as_username`)
and the client id too (`use_username_as_clientid`), whatever the client says: nobody takes over the session of another.
The ACL file has patterns for devices, and denies everything to revoked ones. SIGHUP makes it read ACL, certificates and
revocation list again and leaves connections alone, so revoking also needs `kick`: a client that takes the id of the
revoked one over, on a listener that only the owner of the folder reaches and that leaves client ids as they are.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from muster_controller.broker.permissions import Access, Role, denied, filters
from muster_controller.broker.security import Admission, TlsFiles
from muster_controller.client_names import controller_name, mixer_name
from muster_shared.ids import DeviceId, FleetId

EXECUTABLE = "mosquitto"
INSTALL_HINT = "install the package `mosquitto`"
CONFIGURATION = "mosquitto.conf"
ACL = "mosquitto.acl"
KICK_SOCKET = "kick.sock"
LIMITS = (
    "max_inflight_messages 200",
    "max_queued_messages 100000",
    f"max_queued_bytes {256 * 1024 * 1024}",
    f"max_packet_size {1024 * 1024}",
    "persistent_client_expiration 2m",
)
_WORDS = {Access.PUBLISH: "write", Access.SUBSCRIBE: "read"}
_EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # Not on the PATH of every user.


@dataclass(frozen=True)
class Mosquitto:
    """A Mosquitto program that was found."""

    executable: Path

    @property
    def kick_socket(self) -> str:
        """Where connections are cut."""
        return KICK_SOCKET

    @classmethod
    def find(cls) -> Self | None:
        """Return the one on the PATH, or where packages put it; None where there is none."""
        folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_FOLDERS))
        found = shutil.which(EXECUTABLE, path=folders)
        return cls(Path(found)) if found else None

    def command(self, configuration: Path) -> list[str]:
        """Return what runs it."""
        return [str(self.executable), "-c", str(configuration)]

    def files(self, folder: Path, port: int, admission: Admission | None) -> dict[str, str]:
        """Return its files by name; `mosquitto.conf` is the configuration, and expects to run in `folder`.

        Args:
            folder: absolute, exists; the database and the log go there.
            port: on 127.0.0.1, or on the host of `admission`.
            admission: None listens without TLS and without asking for names.
        """
        if admission is None:
            lines = [f"listener {port} 127.0.0.1", "allow_anonymous true"]  # Only this machine reaches the listener.
            return {CONFIGURATION: _text(lines + _storage(folder))}
        lines = [
            f"listener {port} {admission.host}".rstrip(),
            *tls_lines(admission.tls),
            "use_username_as_clientid true",
            "",
            f"listener 0 {KICK_SOCKET}",
            *tls_lines(admission.tls),
            "",
            "allow_anonymous false",
            f"acl_file {folder / ACL}",
        ]
        return {
            CONFIGURATION: _text(lines + _storage(folder)),
            ACL: acl(admission.fleet, admission.revoked, admission.mixers),
        }


def tls_lines(tls: TlsFiles) -> list[str]:
    """Return the options of a listener that takes certificates only and calls everybody by the common name."""
    return [
        f"cafile {tls.ca}",
        f"certfile {tls.certificate}",
        f"keyfile {tls.key}",
        *([f"crlfile {tls.crl}"] if tls.crl is not None else []),
        "tls_version tlsv1.2",  # At least.
        "require_certificate true",
        "use_identity_as_username true",
    ]


def acl(fleet: FleetId, revoked: Iterable[DeviceId] = (), mixers: Iterable[str] = ()) -> str:
    """Return the ACL file. What it does not allow is denied.

    Mosquitto checks rights when messages move, not when a subscription is made: a SUBACK says yes to everybody.
    Patterns are for everybody, too: what controller and mixers must not do is denied to them by name.
    """
    lines = ["# Who may do what. The name is that of the certificate; %u stands for it."]
    lines += _named(controller_name(fleet), Role.CONTROLLER, fleet, "")
    for mixer in mixers:
        lines += ["", *_named(mixer_name(fleet, mixer), Role.MIXER, fleet, mixer)]
    for device in revoked:
        lines += ["", f"user {device}", "topic deny #"]  # Read before the patterns.
    lines += [
        "",
        "# Every device. Mosquitto warns of those without %u: they are the same for all, which is meant.",
        *(f"pattern {_WORDS[access]} {one}" for access in Access for one in filters(Role.DEVICE, access, fleet, "%u")),
    ]
    return _text(lines)


def _named(name: str, role: Role, fleet: FleetId, own: str) -> list[str]:
    return [
        f"user {name}",
        *(f"topic deny {one}" for one in denied(role, fleet)),
        *(f"topic {_WORDS[access]} {one}" for access in Access for one in filters(role, access, fleet, own)),
    ]


def _storage(folder: Path) -> list[str]:
    lines = [
        "",
        "set_tcp_nodelay true",
        "persistence true",
        f"persistence_location {folder}/",
        "persistence_file mosquitto.db",
        # A kill -9 loses what came since the last save; stock settings save every half hour.
        "autosave_interval 5",
        *LIMITS,
        f"log_dest file {folder / 'mosquitto.log'}",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",  # Ten thousand devices would fill the disk with them.
    ]
    if os.geteuid() == 0:
        # Root's Mosquitto turns into the user `mosquitto`, who may not read this folder.
        lines.append("user root")
    return lines


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
