"""What an operator gets for a broker of their own: files with comments that say where they go. Writes nothing itself.

The embedded broker's files are not these: it also has a folder for its data, and nobody reads them.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from muster_controller.broker import emqx, mosquitto, nats
from muster_controller.broker.security import Admission
from muster_controller.client_names import controller_name


class Foreign(StrEnum):
    """A broker that we write for."""

    MOSQUITTO = "mosquitto"
    NATS = "nats"
    EMQX = "emqx"


@dataclass(frozen=True)
class Handout:
    """One file: its name, where it belongs on the broker's machine, and its text."""

    name: str
    place: str
    text: str


def handouts(broker: Foreign, admission: Admission, port: int) -> list[Handout]:
    """Return the files for `broker`; paths of certificates are those of its machine."""
    match broker:
        case Foreign.MOSQUITTO:
            return _mosquitto(admission, port)
        case Foreign.NATS:
            return _nats(admission, port)
        case Foreign.EMQX:
            return _emqx(admission, port)


def _mosquitto(admission: Admission, port: int) -> list[Handout]:
    acl = Handout(
        "muster.acl", "/etc/mosquitto/muster.acl", mosquitto.acl(admission.fleet, admission.revoked, admission.mixers)
    )
    lines = [
        *_head(
            admission,
            "Mosquitto 2",
            "/etc/mosquitto/conf.d/muster.conf",
            "mosquitto -v -c /etc/mosquitto/mosquitto.conf",
        ),
        "# After a change of muster.acl, of a certificate or of the revocation list: send it SIGHUP",
        "# (`systemctl reload mosquitto`). Connections stay; a revoked device that is connected loses every right at",
        "# once, and its connection when the broker restarts.",
        "",
        f"listener {port} {admission.host}".rstrip(),
        *mosquitto.tls_lines(admission.tls),
        "# The client id is the certificate's name, whatever the client says: nobody gets the session of another.",
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {acl.place}",
        "",
        "# What the fleet needs: thousands of devices, and messages that wait for those who are away.",
        "set_tcp_nodelay true",
        *mosquitto.LIMITS,
        "# In /etc/mosquitto/mosquitto.conf, if it is not there: persistence true, autosave_interval 5",
    ]
    return [Handout("muster.conf", "/etc/mosquitto/conf.d/muster.conf", "\n".join(lines) + "\n"), acl]


def _nats(admission: Admission, port: int) -> list[Handout]:
    place = "/etc/nats/muster.conf"
    lines = [
        *_head(admission, "NATS server 2.12.5 or later (JetStream on)", place, f"nats-server -c {place} -t"),
        "# Who is not listed does not come in (by the URI in the certificate, or by its subject). To let a device in",
        "# or to revoke one, write this file anew and send SIGHUP (`nats-server --signal reload`): who is no longer",
        "# listed is disconnected, nobody else.",
        "# Earlier versions let a client take over the session of another (CVE-2026-33215). In this one, who knows the",
        "# client id of another can push its connection out, but reads and sends nothing in its name.",
        "",
        'server_name: "muster"',
        'jetstream: {store_dir: "/var/lib/nats", sync_interval: "5s"}',
        f"mqtt: {nats.mqtt(admission, port)}",
        f"authorization: {nats.authorization(admission)}",
    ]
    return [Handout("muster.conf", place, "\n".join(lines) + "\n")]


def _emqx(admission: Admission, port: int) -> list[Handout]:
    rules = PurePosixPath("/opt/emqx/etc/muster-acl.conf")
    place = "/opt/emqx/etc/emqx.conf"
    lines = [
        *_head(admission, "EMQX 5", f"the end of {place}", "emqx check_config"),
        "# Written from EMQX's documentation; the product's tests read the rules, they do not run EMQX.",
        "# Revoke: write the file of rules anew (`muster broker config`); load it, in the dashboard or by a restart;",
        "# ban the name, so that it is refused at the door, and then cut the connection that it has:",
        '#   POST   /api/v5/banned  {"as": "username", "who": "DEVICE", "until": "infinity"}',
        "#   DELETE /api/v5/clients/DEVICE",
        "",
        emqx.configuration(admission, port, rules),
    ]
    return [
        Handout("muster-emqx.conf", f"the end of {place}", "\n".join(lines)),
        Handout("muster-acl.conf", str(rules), emqx.acl(admission.fleet, admission.revoked, admission.mixers)),
    ]


def _head(admission: Admission, product: str, place: str, check: str) -> list[str]:
    tls = admission.tls
    return [
        f"# {product} for the fleet {admission.fleet}. Put this into {place}; check it with `{check}`.",
        f"#   {tls.ca}  `ca/clients.pem` of the controller's folder: roots and intermediate of this fleet alone. Where",
        "#     several fleets share a root, give each its own broker or its own intermediate and revocation list.",
        f"#   {tls.certificate}, {tls.key}  the broker's own, for the names that devices use: `muster ca server`.",
        *([f"#   {tls.crl}  `ca/crl.pem` of the controller's folder; copy it whenever it changes."] if tls.crl else []),
        f"# The controller comes with a certificate for {controller_name(admission.fleet)}, devices with their ids,",
        f"# mixers with mixer.<mixer>.{admission.fleet}. The controller must not read metrics: change nothing there.",
        "# What each may do is the same on every broker: `muster broker config` writes it from one table.",
    ]
