"""The controller: opens everything in order, runs it, and closes it in the reverse order.

    machine ─ opened (database, registry, identities) ─ broker ─ fleet_side and, while it leads, its link ─ http

`Controller` is usable from a program too. `serve` is the command: it waits for SIGTERM or SIGINT. What runs where is
written to `<data>/server.json`, so that the command line finds it.
"""

import gc
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from muster_controller import __version__
from muster_controller.alerts.opening import Around, open_alerts
from muster_controller.api.authentication import Edge
from muster_controller.api.guard import LOOPBACK
from muster_controller.api.hub import Change
from muster_controller.api.services import Services
from muster_controller.api.standing import sums
from muster_controller.config import ServerConfig
from muster_controller.db.errors import LedgerError
from muster_controller.db.once_store import OnceStore
from muster_controller.db.sample_store import SampleStore
from muster_controller.db.view_store import ViewStore
from muster_controller.logs import configure_logs
from muster_controller.operators.oidc import Oidc
from muster_controller.operators.service import LINK_S
from muster_controller.registry import durable
from muster_controller.sampling import Sampler
from muster_controller.server.broker import find_broker
from muster_controller.server.fleet_side import FleetSide, client_id_of, open_fleet, without_held
from muster_controller.server.http import page_certificate, page_file, serve_http
from muster_controller.server.machine import listen, lock, page_url
from muster_controller.server.opened import Opened, open_data
from muster_controller.whereabouts import Running, publish_running
from muster_shared import ids
from muster_shared.ids import FleetId

GC_THRESHOLD: Final = 50_000  # Values that are made before the collector looks for rings among them.

log = structlog.get_logger()


class Controller:
    """A controller in this process: `with Controller(config) as controller: ... controller.url`."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self._running: Running | None = None
        self.first_link: str | None = None
        """Where the first operator sets a password; None where there was one before this start."""

    @property
    def url(self) -> str:
        """Of the API and the page, such as http://127.0.0.1:8080."""
        return self._started().url

    @property
    def broker_url(self) -> str:
        """Where agents connect to."""
        return self._started().broker_url

    @property
    def data(self) -> Path:
        """Its folder, where its local token is."""
        return self._config.data

    def start(self) -> None:
        """Start everything; when this returns, the API answers.

        Raises:
            ServerUnavailable: the data folder or the port is in use, or HTTP does not come up.
            BrokerUnavailable, BrokerUrlInvalid: no broker can be started, or its URL does not say where it is.
            LedgerError, RegistryError: what is in the data folder cannot be used.
        """
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise

    def stop(self) -> None:
        """Stop in the reverse order. Doing it twice is harmless."""
        self._stack.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started(self) -> Running:
        assert self._running is not None, "the controller was not started"
        return self._running

    def _start(self) -> None:
        config, stack = self._config, self._stack
        fleet_id = FleetId(ids.name(config.fleet, "fleet"))
        durable.make_folder(config.data, 0o700)
        stack.callback(lock(config.data))
        listener = stack.enter_context(listen(config))
        url = page_url(config, listener.getsockname()[1])

        opened = open_data(config, fleet_id, stack)
        client_id = client_id_of(opened)
        broker_url, public_broker_url = find_broker(config, opened.identity, stack)
        opened.identity.start(public_broker_url)
        certificate = page_certificate(config, opened.identity)
        first = opened.operators.begin_first()
        self.first_link = None if first is None else f"{url}/login/once?link={first.text}"

        fleet_side = open_fleet(opened, broker_url, client_id, url, certificate, stack)
        services = self._services(opened, fleet_side, public_broker_url)
        serve_http(config, services, listener, certificate, stack)
        self._running = Running(url, public_broker_url, os.getpid(), fleet_id, __version__, opened.identity.device_url)
        stack.callback(publish_running(config.data, self._running))
        _warm(opened, stack)
        log.info(
            "controller_started",
            url=url,
            broker=public_broker_url,
            data=str(config.data),
            database=opened.ledger.label,
        )

    def _services(self, opened: Opened, fleet_side: FleetSide, broker_url: str) -> Services:
        """Start what judges and samples the fleet, and return all that routes and pages ask."""
        config, stack, side = self._config, self._stack, opened.side
        thread, door = fleet_side.thread, fleet_side.door
        alerts, engine = open_alerts(
            Around(
                fleet=opened.fleet_id,
                side=side,
                metrics=fleet_side.metrics,
                committed=lambda: without_held(opened.ledger.committed(), fleet_side.holds),
                identity=opened.identity,
                releases=opened.releases,
                page=page_file(config),
                smtp=config.smtp,
                is_connected=lambda: door.is_connected,
                leads=lambda: thread.standing.leads,
                changed=lambda found: opened.hub.changed(*(Change("alert", each.id) for each in found)),
                clock=time.time,
            )
        )
        engine.start()
        stack.callback(engine.stop)
        fleet_samples = SampleStore(side)
        sampler = Sampler(
            fleet_samples, lambda: sums(opened.ledger.committed()), lambda: thread.standing.leads, time.time
        )
        sampler.start()
        stack.callback(sampler.stop)
        return Services(
            fleet_id=opened.fleet_id,
            version=__version__,
            broker_url=broker_url,
            online_keys=opened.online_keys,
            started_at=time.time(),
            clock=time.time,
            committed=opened.ledger.committed,
            reader=opened.ledger.reader,
            releases=opened.releases,
            audit=opened.audit,
            identity=opened.identity,
            alerts=alerts,
            metrics=fleet_side.metrics,
            metrics_reading=fleet_side.reading,
            reviews=fleet_side.reviews,
            once=OnceStore(side, time.time),
            holds=fleet_side.holds,
            hold_store=fleet_side.hold_store,
            calls=fleet_side.calls,
            device_samples=fleet_side.device_samples,
            fleet_samples=fleet_samples,
            views=ViewStore(side, time.time),
            fleet=thread,
            hub=opened.hub,
            broker_connected=lambda: door.is_connected,
            counters=fleet_side.counters,
            operators=opened.operators,
            open_lab=config.open_lab,
            page_certificate=page_file(config),
            edge=Edge(opened.operators, frozenset(each.lower() for each in (*LOOPBACK, config.host, *config.names))),
            oidc=None if config.oidc is None else Oidc(config.oidc),
        )


def _warm(opened: Opened, stack: ExitStack) -> None:
    """Have large rollouts that ended read before somebody asks for them, while everything runs already."""
    is_over = threading.Event()

    def read() -> None:
        try:
            opened.ledger.reader.warm(is_over.is_set)
        except LedgerError as error:  # Whoever asks reads it himself.
            log.warning("rollouts_not_read_ahead", error=str(error))

    thread = threading.Thread(target=read, name="warm", daemon=True)
    thread.start()
    stack.callback(thread.join, 10.0)
    stack.callback(is_over.set)


def serve(config: ServerConfig) -> None:
    """Run a controller until SIGTERM or SIGINT. Errors as `Controller.start`."""
    configure_logs(as_json=config.log_json, verbose=config.verbose)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    with Controller(config) as controller:
        if controller.first_link is not None:  # Not through the log, which is kept for long.
            said = f"The first operator is admin. Set its password within {LINK_S / 3600:.0f} h at"
            print(f"{said}\n\n    {controller.first_link}\n", file=sys.stderr, flush=True)
        # What was read at the start stays for long, and a call-back makes a hundred thousand values at once: the
        # collector, which finds nothing in either, would take half of its time.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        ended.wait()
        log.info("controller_stopping")
    log.info("controller_stopped")
