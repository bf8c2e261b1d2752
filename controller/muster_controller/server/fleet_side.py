"""The fleet with all that it is told and does beside: its thread, its link to the broker, holds, calls, metrics.

Only a controller that leads has a link; the others wait, and read the same database.
"""

import random
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from muster_controller.api.hub import Change
from muster_controller.api.tls import LOOK_S, PageCertificate
from muster_controller.audit.book import SAY_HEAD_S
from muster_controller.broker.nats import STORE as NATS_STORE
from muster_controller.calling import CallDesk
from muster_controller.db.call_store import CallStore
from muster_controller.db.device_samples import DeviceSamples
from muster_controller.db.errors import LedgerError
from muster_controller.db.hold_store import HoldStore
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.receiver_store import ReceiverStore
from muster_controller.db.snapshot import Committed
from muster_controller.export.reading import MetricsReading
from muster_controller.fleet import Fleet
from muster_controller.gateway.door import Door
from muster_controller.gateway.fleet_thread import Chore, FleetThread
from muster_controller.gateway.standing import Standing
from muster_controller.gateway.wire import LinkWire
from muster_controller.holds import Holds, all_holds, revoked
from muster_controller.metrics.ingest import MixedIngest
from muster_controller.metrics.operations import Operations
from muster_controller.ports import Device
from muster_controller.review.desk import LOOK_S as REVIEW_LOOK_S
from muster_controller.review.desk import ReviewDesk
from muster_controller.review.sources import Sources
from muster_controller.server.broker import BROKER_FOLDER, link_config
from muster_controller.server.machine import LOCK_FILE
from muster_controller.server.opened import Opened
from muster_shared import topics
from muster_shared.link import Link
from muster_shared.messages import Twin

REFRESH_TRUST_S: Final = 60.0
RELABEL_S: Final = 1.0
HOLDS_S: Final = 5.0
PRUNE_S: Final = 86_400.0
SERIES_S: Final = 20.0  # Between looks whether five minutes have ended.
METRICS_PRUNE_S: Final = 60.0  # A day of each period at a time, so that no write is long.
HISTORY_S: Final = 90 * 86_400.0  # Events and notes are kept this long.


@dataclass(frozen=True)
class FleetSide:
    fleet: Fleet
    thread: FleetThread
    wire: LinkWire
    door: Door
    holds: Holds
    hold_store: HoldStore
    calls: CallDesk
    device_samples: DeviceSamples
    metrics: MetricsStore
    reading: MetricsReading
    reviews: ReviewDesk

    def counters(self) -> dict[str, int]:
        """Return what happened since the start, by name."""
        return {
            "malformed": self.fleet.counters.malformed,
            "events": self.fleet.counters.events,
            "repeated_events": self.fleet.counters.repeated_events,
            "assignments": self.fleet.counters.assignments,
            "chunks_sent": self.fleet.courier.chunks_sent,
            "bytes_sent": self.fleet.courier.bytes_sent,
            "published": self.wire.counters.published,
            "dropped": self.wire.counters.dropped,
            "received": self.door.counters.received,
            "reconnects": self.door.counters.reconnects,
            "faults": self.thread.faults,
        }


def client_id_of(opened: Opened) -> str:
    """Return what all controllers of the database call themselves at the broker. Raises LedgerError."""

    def forget_sessions() -> None:
        """Let NATS forget a controller of another name: it would keep all that devices say for it, for ever."""
        shutil.rmtree(opened.config.data / BROKER_FOLDER / NATS_STORE, ignore_errors=True)

    return f"muster-controller-{opened.fleet_id}-{opened.identity.client_word(forget_sessions)}"


def open_fleet(
    opened: Opened,
    broker_url: str,
    client_id: str,
    url: str,
    certificate: PageCertificate | None,
    stack: ExitStack,
) -> FleetSide:
    """Start the fleet's thread, to be ended with `stack`. Raises LedgerError.

    Args:
        broker_url: where this controller finds the broker.
        url: where operators find this controller, for those who ask one that does not lead.
        certificate: of the page; renewed beside the other chores.
    """
    config, side, identity, releases = opened.config, opened.side, opened.identity, opened.releases
    wire = LinkWire(opened.fleet_id)
    metrics = MetricsStore(side)
    ingest = MixedIngest(metrics, wire, time.time)
    operations = Operations(metrics, time.time)
    reading = MetricsReading(side)
    sources = Sources(opened.fleet_id, reading, opened.ledger.committed, releases, identity)
    reviews = ReviewDesk(side, ReceiverStore(side, time.time), sources.facts, time.time)
    hold_store = HoldStore(side, time.time)
    holds = Holds(lambda: all_holds(hold_store.all(), map(revoked, identity.cut)))
    holds.refresh()
    calls = CallDesk(
        opened.fleet_id,
        CallStore(side, time.time),
        releases,
        time.time,
        lambda device: opened.hub.changed(Change("device", device)),
    )
    device_samples = DeviceSamples(side, time.time)

    def heard(before: Device, twin: Twin) -> None:
        hold = holds(twin.device)
        if hold is None or not hold.is_out:  # What is quarantined counts for nothing, in no alert either.
            operations.twin(before, twin)
        device_samples.heard(twin)

    fleet = Fleet(
        opened.fleet_id,
        ledger=opened.ledger,
        registry=releases,
        wire=wire,
        clock=time.time,
        random=random.Random(config.seed),
        session=opened.session,
        labels=(lambda device: {}) if config.open_lab else identity.labels,
        heard=heard,
        holds=holds,
        gone=holds.gone,
        answered=calls.answered,
    )

    def relabel() -> None:
        changed = identity.labels.changed()
        if changed:
            fleet.relabel(changed)
            identity.labels.took(changed)

    def follow_holds() -> None:
        changed = holds.refresh()  # Another controller of the database may have taken the order.
        if changed:
            fleet.held(changed)
            holds.took(changed)

    def prune_metrics() -> None:
        metrics.prune(time.time())

    def refresh_trust() -> None:
        if releases.refresh(datetime.now(UTC)):
            fleet.publish_trust()

    def make_link() -> Link:
        link = Link(
            link_config(broker_url, client_id, identity.enrolment.ca.paths), thread.on_item, rng=random.Random()
        )
        link.subscribe(topics.controller_filters(opened.fleet_id))
        return link

    door = Door(make_link, wire)
    # Its own file is this process's alone, by the lock; a shared database has to tell controllers apart.
    holder = f"{socket.gethostname()}:{config.data.resolve()}" if config.database else LOCK_FILE
    thread = FleetThread(
        fleet,
        opened.ledger,
        wire,
        Standing(opened.ledger, holder, url, on_lead=door.open, on_stand_by=door.close),
        door.ack,
        chores=(
            Chore("refresh_trust", REFRESH_TRUST_S, refresh_trust),
            Chore("relabel", RELABEL_S, relabel),
            Chore("holds", HOLDS_S, follow_holds),
            Chore("audit_head", SAY_HEAD_S, opened.audit.say_head),
            Chore("sweep_credentials", PRUNE_S, opened.operators.sweep),
            *(() if certificate is None else (Chore("page_certificate", LOOK_S, certificate.turn),)),
            Chore("prune", PRUNE_S, lambda: opened.ledger.prune(time.time() - HISTORY_S)),
            Chore("series", SERIES_S, operations.flush),
            Chore("review", REVIEW_LOOK_S, reviews.turn),
            Chore("metrics_prune", METRICS_PRUNE_S, prune_metrics),
            Chore("device_samples", SERIES_S, device_samples.flush),
        ),
        on_moved=fleet.moved,
        on_mixed=ingest.received,
    )
    stack.callback(_quietly, operations.close)
    stack.callback(reviews.stop)
    thread.start()
    stack.callback(thread.stop)
    return FleetSide(fleet, thread, wire, door, holds, hold_store, calls, device_samples, metrics, reading, reviews)


def without_held(fleet: Committed, holds: Holds) -> Committed:
    """Return the fleet without the devices that count for nothing; the same value where there are none."""
    out = {device for device, hold in holds.all().items() if hold.is_out and device in fleet.devices}
    if not out:
        return fleet
    return Committed(
        {name: device for name, device in fleet.devices.items() if name not in out},
        {name: desired for name, desired in fleet.desired.items() if name not in out},
        fleet.baselines,
        fleet.running,
        tallies=fleet.tallies,
    )


def _quietly(close: Callable[[], None]) -> None:
    """Write down at the end what the database takes."""
    with suppress(LedgerError):
        close()
