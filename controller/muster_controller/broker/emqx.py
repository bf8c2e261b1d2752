"""What an EMQX 5 of the user's own is told: its listener, and the file of rules. EMQX is never started from here.

Every client is called by its certificate's common name, and has it as its client id too. Rules are read from the top;
the last one denies. https://docs.emqx.com/en/emqx/latest/access-control/authz/file.html
"""

from collections.abc import Iterable
from pathlib import PurePath

from muster_controller.broker.permissions import Access, Role, filters
from muster_controller.broker.security import Admission
from muster_controller.client_names import controller_name, mixer_name
from muster_shared.ids import DeviceId, FleetId

CONFIGURATION = "emqx.conf"
RULES = "acl.conf"
_ANYBODY = "${username}"  # EMQX puts the name of the client there.


def configuration(admission: Admission, port: int, rules: PurePath) -> str:
    """Return the part of `emqx.conf` that is about the fleet, in EMQX's own language (HOCON).

    Args:
        rules: where the file of `acl` will be on EMQX's machine.
    """
    tls = admission.tls
    return f"""\
listeners.tcp.default.enable = false
listeners.ws.default.enable = false
listeners.wss.default.enable = false
listeners.ssl.default {{
  bind = "{admission.host or "0.0.0.0"}:{port}"
  ssl_options {{
    cacertfile = "{tls.ca}"
    certfile = "{tls.certificate}"
    keyfile = "{tls.key}"
    verify = verify_peer
    fail_if_no_peer_cert = true
    versions = ["tlsv1.3", "tlsv1.2"]
  }}
}}
mqtt {{
  peer_cert_as_username = cn
  peer_cert_as_clientid = cn
  max_packet_size = 1MB
  max_inflight = 200
}}
authentication = []
authorization {{
  no_match = deny
  deny_action = ignore
  sources = [{{type = file, enable = true, path = "{rules}"}}]
}}
"""


def acl(fleet: FleetId, revoked: Iterable[DeviceId] = (), mixers: Iterable[str] = ()) -> str:
    """Return the file of rules.

    A subscription is held against a rule's filter level by level, with its own wildcards as plain words. So `trust/#`
    passes for `trust/+`; it reaches nothing more, as the levels below do not exist.
    """
    lines = ["%% Who may do what. The first rule that fits decides."]
    lines += [f'{{deny, {{username, "{device}"}}, all, ["#"]}}.' for device in revoked]
    named = [(controller_name(fleet), Role.CONTROLLER, "")]
    named += [(mixer_name(fleet, mixer), Role.MIXER, mixer) for mixer in mixers]
    for name, role, own in named:
        lines += [
            f'{{allow, {{username, "{name}"}}, {access}, {_list(filters(role, access, fleet, own))}}}.'
            for access in Access
        ]
        lines.append(f'{{deny, {{username, "{name}"}}, all, ["#"]}}.')
    lines += [f"{{allow, all, {access}, {_list(filters(Role.DEVICE, access, fleet, _ANYBODY))}}}." for access in Access]
    lines.append("{deny, all}.")
    return "\n".join(lines) + "\n"


def _list(topics: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{one}"' for one in topics) + "]"
