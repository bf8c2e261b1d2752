"""What holds each attack off, and how that is switched off in the process of one agent. For tests alone.

A defence is named by the function of the shipped code that it is; `switch_off` replaces that function wherever it was
imported. Where two walls stand one behind the other both must fall, and both are named. This module imports nothing of
the agent before it is asked to: what is patched must be patched first.
"""

import base64
import json
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

Break = Callable[[Any], object]
"""From the shipped function to the broken one."""


@dataclass(frozen=True)
class Defence:
    """`walls`: by `module:function`, how each is broken. `holds`: what a reviewer would have to overlook."""

    holds: str
    walls: dict[str, Break]

    def switch_off(self) -> None:
        """Break it in this process, for good."""
        for where, break_it in self.walls.items():
            module, _, path = where.partition(":")
            owner: Any = import_module(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            original = getattr(owner, name)
            broken = break_it(original)
            setattr(owner, name, broken)
            if not parents:
                _rebind(original, broken)


def _rebind(original: object, broken: object) -> None:
    """Put `broken` wherever a module that is loaded has imported `original` by name."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("muster_", "tuf")):
            for attribute, value in list(vars(module).items()):
                if value is original:
                    setattr(module, attribute, broken)


# -- broken functions --------------------------------------------------------------------------------------------------


def _always(value: object) -> Break:
    return lambda original: lambda *arguments, **named: value


def _obey_any_counter(original: Any) -> object:
    def assignment(state: Any, event: Any, now: float) -> object:
        if event.digest == state.assignment:
            return state, ()
        return original(replace(state, counter=0, keys={}), event, now)

    return assignment


def _obey_any_device(original: Any) -> object:
    def assignment(state: Any, event: Any, now: float) -> object:
        said = msgspec.structs.replace(event.assignment, device=state.device)
        return original(state, replace(event, assignment=said), now)

    return assignment


def _obey_any_signer(original: Any) -> object:
    from muster_shared.assignment import parse

    return lambda raw, keys: parse(base64.b64decode(json.loads(raw)["payload"]))


def _forget_what_was_seen(original: Any) -> object:
    def run(scratch: Path, question: Any) -> object:
        for path in scratch.glob("*.json"):
            path.unlink()
        return original(scratch, question)

    return run


def _without_a_clock(original: Any) -> object:
    return lambda scratch, question: original(scratch, msgspec.structs.replace(question, now=0.0))


def _heed_no_online_signature(original: Any) -> object:
    def verify_delegate(self: Any, role: str, payload: bytes, signatures: Any) -> None:
        if role not in ("timestamp", "snapshot"):
            original(self, role, payload, signatures)

    return verify_delegate


def _one_signature_is_enough(original: Any) -> object:
    def verify_delegate(self: Any, role: str, payload: bytes, signatures: Any) -> None:
        if not self.get_verification_result(role, payload, signatures).signed:
            original(self, role, payload, signatures)

    return verify_delegate


def _believe_file_names(original: Any) -> object:
    from tuf.api.metadata import Targets

    def load_targets(self: Any, role: str, delegator: str) -> object:
        trusted = self._trusted_set
        if not trusted.contains(role, delegator):
            version = trusted.snapshot.meta[f"{role}.json"].version
            data = self._download_metadata(role, self.config.targets_max_length, version)
            targets, _, _ = trusted._load_data(Targets, data, trusted[delegator], role)
            trusted._add(role, targets, delegator)
            self._persist_metadata(role, data)
        return trusted[role]

    return load_targets


def _every_role_for_every_path(original: Any) -> object:
    from muster_agent.io import trust_check

    def releases(self: Any, now: object) -> object:
        found: dict[str, object] = {}
        for role in self._release_roles():
            self.get_targetinfo(trust_check._probe(role))
            found |= {path: trust_check._target(info) for path, info in self._targets(role.name).items()}
            self.loaded.append(role.name)
        return found, {}

    return releases


def _write_whatever_arrives(original: Any) -> object:
    from muster_agent.core.transfer import Arrival

    def arrive(transfer: Any, index: int, chunk: bytes, now: float) -> object:
        bits = 1 << index if index < transfer.count else 0
        return replace(transfer, have=transfer.have | bits, window=transfer.window & ~bits), Arrival.WRITE

    return arrive


def _ask_once(original: Any) -> object:
    return lambda transfer, now: (transfer, None) if transfer.window else original(transfer, now)


def _without_weights(original: Any) -> object:
    return lambda manifest, variants: tuple(
        file for file in original(manifest, variants) if not file.path.startswith("weights")
    )


def _decode_or_die(original: Any) -> object:
    return lambda raw, kind: msgspec.json.decode(raw, type=kind)


def _events_or_die(self: Any, received: Any) -> object:
    return [msgspec.json.decode(item.payload)["id"] for item in received if item.topic.endswith("/event")]


def _trust_anybody(original: Any) -> object:
    def context(*arguments: Any, **named: Any) -> object:
        made = original(*arguments, **named)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        return made

    return context


_seen = bytearray()


def _look_at_requests(original: Any) -> object:
    def call(self: Any, request: Any) -> object:
        _seen[:] = request.body[:1000]
        return original(self, request)

    return call


def _tell_requests(original: Any) -> object:
    def twin(self: Any) -> object:
        self._twin_dirty = True
        return msgspec.structs.replace(original(self), labels={"last": _seen.decode(errors="replace")})

    return twin


# ----------------------------------------------------------------------------------------------------------------------

_UPDATE = "muster_agent.core.update"
_CHECK = "muster_agent.io.trust_check"
_TUF = "tuf.api.metadata"
_MUST_BE_A_TARGET = Defence(
    "an assignment names nothing but what the release keys sign now", {f"{_UPDATE}:_target_problem": _always(None)}
)
_NEVER_BACK = Defence("versions of metadata that were seen stay seen", {f"{_CHECK}:_run": _forget_what_was_seen})

DEFENCES: dict[str, Defence] = {
    "arbitrary_software": _MUST_BE_A_TARGET,
    "swapped_bytes": Defence(
        "what is stored is hashed before it counts, and again when a manifest is read",
        {
            "muster_agent.io.store:ContentStore._hash": lambda _: lambda self, path: path.rsplit("/", 1)[1],
            "muster_agent.io.store:ContentStore.read": lambda _: (
                lambda self, sha256: self._disk.read(f"blobs/{sha256}", 0, 1 << 22)
            ),
        },
    ),
    "wrong_hardware": Defence("a variant must fit the device", {"muster_shared.variants:fits": _always(True)}),
    "wrong_model": Defence(
        "a release role speaks for the paths of its model alone",
        {f"{_CHECK}:DeviceUpdater.releases": _every_role_for_every_path},
    ),
    "forged_assignment": Defence(
        "an assignment is signed by a key that the offline keys name", {f"{_CHECK}:open_signed": _obey_any_signer}
    ),
    "replay_to_another_device": Defence("an assignment names its device", {f"{_UPDATE}:_assignment": _obey_any_device}),
    "rollback_release": _MUST_BE_A_TARGET,
    "rollback_counter": Defence("counters of assignments rise", {f"{_UPDATE}:_assignment": _obey_any_counter}),
    "rollback_metadata": _NEVER_BACK,
    "mix_and_match": Defence(
        "a role's file is the one that the snapshot names",
        {"tuf.ngclient.updater:Updater._load_targets": _believe_file_names},
    ),
    "freeze": Defence("a timestamp has a date", {f"{_CHECK}:_run": _without_a_clock}),
    "freeze_behind_a_forgery": Defence(
        "what has expired is not gone by, whatever else is wrong",
        {"muster_agent.io.trust:TrustClient._in_force": lambda _: lambda self, failure, now: failure},
    ),
    "indefinite_freeze": Defence("a snapshot has a date", {f"{_TUF}:Snapshot.is_expired": _always(False)}),
    "indefinite_freeze_of_everything": Defence(
        "what the offline keys sign has a date", {f"{_TUF}:Targets.is_expired": _always(False)}
    ),
    "fast_forward": Defence(
        "what old online keys signed means nothing under a new root",
        {f"{_TUF}:Root.verify_delegate": _heed_no_online_signature},
    ),
    "fast_forward_counter": Defence(
        "counters of keys that are all gone mean nothing under new ones",
        {f"{_UPDATE}:_floor": lambda _: lambda state, keys: state.counter},
    ),
    "endless_data": Defence(
        "a chunk has its place and its length", {"muster_agent.core.transfer:arrive": _write_whatever_arrives}
    ),
    "slow_retrieval": Defence("an update has a deadline", {f"{_UPDATE}:overdue": _always("")}),
    "drop_request": Defence("what does not come is asked for again", {"muster_agent.core.transfer:ask": _ask_once}),
    "partial_bundle": Defence(
        "a release is tested only when every file of it is here", {"muster_shared.variants:files_of": _without_weights}
    ),
    "eavesdrop": Defence(
        "nothing that reports knows of inputs",  # There is nothing to switch off: a leak is put in.
        {
            "muster_agent.serving.app:App.__call__": _look_at_requests,
            "muster_agent.conductor:Conductor.twin": _tell_requests,
        },
    ),
    "forged_messages": Defence(
        "what does not parse is one error, and the thread outlives every other",
        {
            "muster_agent.conductor:decode": _decode_or_die,
            "muster_agent.inbox:ConductorThread._guarded": lambda _: lambda self, act: act(),
        },
    ),
    "stolen_release_key": Defence(
        "a release needs as many keys as the targets say", {f"{_TUF}:Targets.verify_delegate": _one_signature_is_enough}
    ),
    "stolen_root_key": Defence(
        "a root needs as many keys as the root before it says",
        {f"{_TUF}:Root.verify_delegate": _one_signature_is_enough},
    ),
    "stolen_controller_ships": Defence(
        "releases are signed by keys that no controller has", {f"{_TUF}:Targets.verify_delegate": _always(None)}
    ),
    "stolen_controller_brings_back": _NEVER_BACK,
}

CONTROLLER = Defence(
    "what is no event is no reason to stop",
    {"muster_controller.gateway.fleet_thread:FleetThread._events": lambda _: _events_or_die},
)
"""Of the controller, against forged messages."""

LINE: dict[str, Defence] = {
    "impostor": Defence(
        "the broker's certificate is of the fleet's own CA", {"ssl:create_default_context": _trust_anybody}
    )
}
"""Of the agent, on its way to the broker."""
