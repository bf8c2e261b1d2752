"""Puts alerts together for the server: what looks, what tells, and the desk that takes orders."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from muster_controller.alerts import sources
from muster_controller.alerts.desk import AlertDesk
from muster_controller.alerts.engine import Engine, Stores
from muster_controller.alerts.looking import Looking, Sources
from muster_controller.alerts.mail import Mails
from muster_controller.alerts.mqtt import Publisher
from muster_controller.alerts.smtp import SmtpConfig
from muster_controller.alerts.telling import Teller
from muster_controller.alerts.webhook import Webhooks
from muster_controller.core.alerts.machine import Alert
from muster_controller.db.alert_store import AlertStore
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.objective_store import ObjectiveStore
from muster_controller.db.published import newest_hours
from muster_controller.db.receiver_store import Kind, ReceiverStore
from muster_controller.db.side import SideDatabase
from muster_controller.db.snapshot import Committed
from muster_controller.identity.desk import IdentityDesk
from muster_controller.releases import Releases


@dataclass(frozen=True)
class Around:
    """What alerts stand on. `page`: the certificate of the page, if it has one."""

    fleet: str
    side: SideDatabase
    metrics: MetricsStore
    committed: Callable[[], Committed]
    identity: IdentityDesk
    releases: Releases
    page: Path | None
    smtp: SmtpConfig | None
    is_connected: Callable[[], bool]
    leads: Callable[[], bool]
    changed: Callable[[list[Alert]], None]
    clock: Callable[[], float]


def open_alerts(around: Around) -> tuple[AlertDesk, Engine]:
    """Return the desk, and the engine, which is not started."""
    side, clock = around.side, around.clock
    alerts, objectives = AlertStore(side, clock), ObjectiveStore(side, clock)
    receivers, mails = ReceiverStore(side, clock), Mails(around.smtp)
    teller = Teller(
        receivers, {Kind.WEBHOOK: Webhooks(), Kind.EMAIL: mails, Kind.MQTT: Publisher()}, clock, random.Random()
    )

    def looking() -> Looking:
        content = sources.Content(around.metrics, around.releases, clock)
        mixing = sources.Mixing(around.metrics, lambda since: newest_hours(side, since), clock)
        identity = around.identity
        return Looking(
            Sources(
                committed=around.committed,
                is_connected=around.is_connected,
                objectives=objectives,
                drift=content.drift,
                compared=content.compared,
                peaks=content.peaks,
                mixers=mixing.mixers,
                certificates=lambda: sources.certificates(
                    identity.enrolment.ca.describe(), identity.mixers.all(), around.page
                ),
                keys=lambda: sources.keys(around.releases),
            ),
            clock,
        )

    engine = Engine(
        Stores(alerts, receivers),
        looking,
        teller,
        fleet=around.fleet,
        leads=around.leads,
        changed=around.changed,
        clock=clock,
    )
    desk = AlertDesk(alerts, objectives, receivers, teller, mails, fleet=around.fleet, clock=clock)
    return desk, engine
