"""`muster demo` with an ear: a client that hears all that the demo's broker carries, and writes it down at the end.

    python -m harness.demo_ear RECORD demo --once ...     as `muster demo --once ...`, with RECORD written

The broker takes certificates alone, and lets nobody hear everything. So the controller of such a demo is started with a
wider table of permissions for mixers, and an extra one is admitted that never mixes: it has a key, a certificate and a
line in the broker's file as the shipped one has. The rights of devices and of the controller are as they are shipped.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import structlog
from rich.console import Console

from harness.listening import Listener, Message
from muster_controller.broker import permissions
from muster_controller.broker.permissions import TABLE, Access, Role
from muster_controller.cli.main import main
from muster_controller.mixer import certificate
from muster_controller.mixer.folder import MixerFolder
from muster_simulator.demo import run as demo
from muster_simulator.demo.desk import Desk
from muster_simulator.demo.plan import FLEET
from muster_simulator.demo.stage import MUSTER, Options, Stage
from muster_simulator.demo.summary import Summary

EAR = "ear"
TOPIC = "ear/said"
"""The ear alone may say something there: it hears itself when the broker has heard of its rights."""
CONTROLLER = f"from harness.demo_ear import widen; widen(); {MUSTER}"
ADMITTED_S = 30.0


def widen() -> None:
    """Let mixers hear everything, in this process: it is to become the controller of a demo."""
    mixer = TABLE[Role.MIXER]
    # Topics of all devices are denied to mixers by name, which goes before the rest: unless they are theirs by name.
    shared = [one for access in Access for one in TABLE[Role.DEVICE][access] if "{own}" not in one]
    heard = (*mixer[Access.SUBSCRIBE], *(one for one in shared if one not in mixer[Access.SUBSCRIBE]), "#")
    said = (*mixer[Access.PUBLISH], TOPIC)
    permissions.TABLE = {**TABLE, Role.MIXER: {Access.PUBLISH: said, Access.SUBSCRIBE: heard}}  # type: ignore[misc]


class Ear:
    """Comes when the demo opens, and stays until the broker is gone."""

    def __init__(self) -> None:
        self.listener: Listener | None = None

    def arrive(self, stage: Stage, desk: Desk) -> None:
        folder = MixerFolder.create(stage.folder / EAR, EAR)
        desk.admit(folder)
        listener = Listener(stage.broker_port, FLEET, certificate.ensure(folder, time.time).link)
        self.listener = listener
        deadline = time.monotonic() + ADMITTED_S
        while not listener.on(TOPIC):
            assert time.monotonic() < deadline, "the broker never let the ear hear itself"
            listener.say(TOPIC, b"is anybody there")
            time.sleep(0.2)

    def leave(self, record: Path) -> None:
        if self.listener is not None:
            self.listener.close()
            record.write_bytes(msgspec.msgpack.encode(self.listener.messages))


def heard(record: Path) -> list[Message]:
    """Return what the ear of a demo wrote down, in order."""
    found = msgspec.msgpack.decode(record.read_bytes(), type=list[tuple[str, bytes, bytes]])
    return [Message(*each) for each in found if each[0] != TOPIC]


def _run(ear: Ear, options: Options, console: Console, *, once: bool, as_json: bool) -> Summary:
    return _shipped(replace(options, controller=CONTROLLER), console, once=once, as_json=as_json, opening=ear.arrive)


_shipped = demo.run


def tell(record: Path, words: Sequence[str]) -> None:
    """Be `muster` with these words, with an ear in the demo."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # The summary alone is for stdout.
    ear = Ear()
    demo.run = partial(_run, ear)  # The command line hands nothing in: nobody but a test has an ear.
    sys.argv = ["muster", *words]
    try:
        main()
    finally:
        ear.leave(record)


if __name__ == "__main__":
    tell(Path(sys.argv[1]), sys.argv[2:])
