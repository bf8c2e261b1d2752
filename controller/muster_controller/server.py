"""The server: opens everything in order, runs it, and closes it in the reverse order.

    lock ─ database ─ registry ─ broker ─ fleet thread and, while it leads, link ─ HTTP

`Controller` is usable from a program too. `serve` is the command: it waits for SIGTERM or SIGINT. What runs where is
written to `<data>/server.json`, so that the command line finds it.
"""

import fcntl
import gc
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog
import uvicorn

from muster_controller import __version__
from muster_controller.alerts.opening import Around, open_alerts
from muster_controller.api import prometheus
from muster_controller.api.app import create_app
from muster_controller.api.authentication import Edge
from muster_controller.api.guard import LOOPBACK
from muster_controller.api.hub import Change, Hub
from muster_controller.api.services import Services
from muster_controller.api.standing import sums
from muster_controller.api.tls import LOOK_S, PageCertificate
from muster_controller.audit.book import SAY_HEAD_S, AuditBook
from muster_controller.audit.checkpoint import open_signer
from muster_controller.broker.embedded import start_broker
from muster_controller.broker.nats import STORE as NATS_STORE
from muster_controller.calling import CallDesk
from muster_controller.config import BROKER_PORT, BROKER_TLS_PORT, HOST, ServerConfig, TlsFiles
from muster_controller.db.audit import AuditReader
from muster_controller.db.call_store import CallStore
from muster_controller.db.device_samples import DeviceSamples
from muster_controller.db.engine import find_database
from muster_controller.db.errors import LedgerError
from muster_controller.db.hold_store import HoldStore
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.once_store import OnceStore
from muster_controller.db.operator_store import OperatorStore
from muster_controller.db.receiver_store import ReceiverStore
from muster_controller.db.sample_store import SampleStore
from muster_controller.db.side import SideDatabase
from muster_controller.db.snapshot import Touched
from muster_controller.db.view_store import ViewStore
from muster_controller.errors import ServerUnavailable
from muster_controller.export.otlp import Pusher
from muster_controller.export.reading import MetricsReading
from muster_controller.fleet import Fleet
from muster_controller.gateway.door import Door
from muster_controller.gateway.fleet_thread import Chore, FleetThread
from muster_controller.gateway.standing import Standing
from muster_controller.gateway.wire import LinkWire
from muster_controller.holds import Holds, all_holds, revoked, without_held
from muster_controller.identity.ca import Paths
from muster_controller.identity.desk import IdentityDesk, broker_url_for_devices
from muster_controller.logs import configure_logs
from muster_controller.metrics.ingest import MixedIngest
from muster_controller.metrics.operations import Operations
from muster_controller.operators.local import FILE as LOCAL_TOKEN_FILE
from muster_controller.operators.local import write_local
from muster_controller.operators.oidc import Oidc
from muster_controller.operators.passwords import Passwords
from muster_controller.operators.service import LINK_S, Operators
from muster_controller.ports import Device
from muster_controller.registry import durable
from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.keys import encode_online_keys
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_controller.releases import Releases
from muster_controller.review.desk import LOOK_S as REVIEW_LOOK_S
from muster_controller.review.desk import ReviewDesk
from muster_controller.review.sources import Sources
from muster_controller.sampling import Sampler
from muster_controller.web.frame import add_pages
from muster_controller.web.pages import ROUTERS
from muster_controller.whereabouts import Running, publish_running
from muster_shared import ids, topics
from muster_shared.ids import FleetId
from muster_shared.link import Link, LinkConfig, parse_broker_url
from muster_shared.messages import Twin

DATABASE_FILE = "muster.db"
LOCK_FILE = "lock"
BROKER_FOLDER = "broker"
PAGE_CERTIFICATE_FILE = "page.pem"
ANY_HOST = ("0.0.0.0", "::")

BROKER_READY_S = 20.0
HTTP_READY_S = 20.0
REFRESH_TRUST_S = 60.0
RELABEL_S = 1.0
HOLDS_S = 5.0
PRUNE_S = 86_400.0
SERIES_S = 20.0  # Between looks whether five minutes have ended.
METRICS_PRUNE_S = 60.0  # A day of each period at a time, so that no write is long.
HISTORY_S = 90 * 86_400.0  # Events and notes are kept this long.
SESSION_S = 3600  # The broker keeps for an hour what devices say while the controller is away.
QUEUED_OUT_MAX = 50_000  # An assignment each for a fleet of this size, said at once after a connect.

GC_THRESHOLD = 50_000  # Values that are made before the collector looks for rings among them.

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
        stack.callback(_lock(config.data))
        listener = stack.enter_context(_listen(config))
        create_online_keys(config.data)
        session = secrets.token_hex(4)
        hub = Hub(session)
        ledger = stack.enter_context(
            SqlLedger(
                config.database or config.data / DATABASE_FILE, time.time, lambda touched: hub.changed(*_told(touched))
            )
        )
        side = stack.enter_context(SideDatabase(find_database(config.database or config.data / DATABASE_FILE)))
        local = write_local(config.data)
        stack.callback((config.data / LOCAL_TOKEN_FILE).unlink, missing_ok=True)
        operators = Operators(OperatorStore(side), Passwords(), local, time.time)
        audit_reader = AuditReader(find_database(config.database or config.data / DATABASE_FILE))
        stack.callback(audit_reader.close)
        audit = AuditBook(audit_reader, fleet_id, open_signer(config.data, fleet_id), time.time)
        blobs = BlobStore(config.data / "blobs")
        blobs.sweep()
        releases = Releases(TufRepository(config.data), blobs)
        releases.refresh(datetime.now(UTC))
        identity = IdentityDesk(
            config,
            fleet_id,
            side,
            lambda: _newest_root(releases),
            time.time,
            lambda: encode_online_keys(create_online_keys(config.data)),
        )
        stack.callback(identity.stop)

        def forget_sessions() -> None:
            """Let NATS forget a controller of another name: it would keep all that devices say for it, for ever."""
            shutil.rmtree(config.data / BROKER_FOLDER / NATS_STORE, ignore_errors=True)

        client_id = f"muster-controller-{fleet_id}-{identity.client_word(forget_sessions)}"
        broker_url, public_broker_url = self._find_broker(identity)
        identity.start(public_broker_url)
        certificate = self._page_certificate(identity)

        wire = LinkWire(fleet_id)
        metrics = MetricsStore(side)
        ingest = MixedIngest(metrics, wire, time.time)
        operations = Operations(metrics, time.time)
        reading = MetricsReading(side)
        sources = Sources(fleet_id, reading, ledger.committed, releases, identity)
        reviews = ReviewDesk(side, ReceiverStore(side, time.time), sources.facts, time.time)
        hold_store = HoldStore(side, time.time)
        holds = Holds(lambda: all_holds(hold_store.all(), map(revoked, identity.cut)))
        holds.refresh()
        calls = CallDesk(
            fleet_id,
            CallStore(side, time.time),
            releases,
            time.time,
            lambda device: hub.changed(Change("device", device)),
        )
        device_samples = DeviceSamples(side, time.time)

        def heard(before: Device, twin: Twin) -> None:
            hold = holds(twin.device)
            if hold is None or not hold.is_out:  # What is quarantined counts for nothing, in no alert either.
                operations.twin(before, twin)
            device_samples.heard(twin)

        fleet = Fleet(
            fleet_id,
            ledger=ledger,
            registry=releases,
            wire=wire,
            clock=time.time,
            random=random.Random(config.seed),
            session=session,
            labels=(lambda device: {}) if config.open_lab else identity.labels,
            heard=heard,
            holds=holds,
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
                _link_config(broker_url, client_id, identity.enrolment.ca.paths), thread.on_item, rng=random.Random()
            )
            link.subscribe(topics.controller_filters(fleet_id))
            return link

        url = _url(config, listener.getsockname()[1])
        first = operators.begin_first()
        self.first_link = None if first is None else f"{url}/login/once?link={first.text}"
        door = Door(make_link, wire)
        # Its own file is this process's alone, by the lock; a shared database has to tell controllers apart.
        holder = f"{socket.gethostname()}:{config.data.resolve()}" if config.database else LOCK_FILE
        thread = FleetThread(
            fleet,
            ledger,
            wire,
            Standing(ledger, holder, url, on_lead=door.open, on_stand_by=door.close),
            door.ack,
            chores=(
                Chore("refresh_trust", REFRESH_TRUST_S, refresh_trust),
                Chore("relabel", RELABEL_S, relabel),
                Chore("holds", HOLDS_S, follow_holds),
                Chore("audit_head", SAY_HEAD_S, audit.say_head),
                Chore("sweep_credentials", PRUNE_S, operators.sweep),
                *(() if certificate is None else (Chore("page_certificate", LOOK_S, certificate.turn),)),
                Chore("prune", PRUNE_S, lambda: ledger.prune(time.time() - HISTORY_S)),
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

        alerts, engine = open_alerts(
            Around(
                fleet=fleet_id,
                side=side,
                metrics=metrics,
                committed=lambda: without_held(ledger.committed(), holds),
                identity=identity,
                releases=releases,
                page=self._page_file(),
                smtp=config.smtp,
                is_connected=lambda: door.is_connected,
                leads=lambda: thread.standing.leads,
                changed=lambda found: hub.changed(*(Change("alert", each.id) for each in found)),
                clock=time.time,
            )
        )
        engine.start()
        stack.callback(engine.stop)
        fleet_samples = SampleStore(side)
        sampler = Sampler(fleet_samples, lambda: sums(ledger.committed()), lambda: thread.standing.leads, time.time)
        sampler.start()
        stack.callback(sampler.stop)

        services = Services(
            fleet_id=fleet_id,
            version=__version__,
            broker_url=public_broker_url,
            online_keys=lambda: encode_online_keys(create_online_keys(config.data)),
            started_at=time.time(),
            clock=time.time,
            committed=ledger.committed,
            reader=ledger.reader,
            releases=releases,
            audit=audit,
            identity=identity,
            alerts=alerts,
            metrics=metrics,
            metrics_reading=reading,
            reviews=reviews,
            once=OnceStore(side, time.time),
            holds=holds,
            hold_store=hold_store,
            calls=calls,
            device_samples=device_samples,
            fleet_samples=fleet_samples,
            views=ViewStore(side, time.time),
            fleet=thread,
            hub=hub,
            broker_connected=lambda: door.is_connected,
            counters=lambda: _counters(fleet, thread, wire, door),
            operators=operators,
            open_lab=config.open_lab,
            page_certificate=self._page_file(),
            edge=Edge(operators, frozenset(each.lower() for each in (*LOOPBACK, config.host, *config.names))),
            oidc=None if config.oidc is None else Oidc(config.oidc),
        )
        self._serve_http(services, listener, certificate)
        self._running = Running(url, public_broker_url, os.getpid(), fleet_id, __version__, identity.device_url)
        stack.callback(publish_running(config.data, self._running))
        log.info(
            "controller_started", url=url, broker=services.broker_url, data=str(config.data), database=ledger.label
        )

    def _find_broker(self, identity: IdentityDesk) -> tuple[str, str]:
        """Return where this controller and where devices find the broker; start one if nobody else does."""
        config = self._config
        if config.broker_url:
            return config.broker_url, _without_user(config.broker_url)
        standard = BROKER_PORT if config.open_lab else BROKER_TLS_PORT
        port = (standard if config.broker_port is None else config.broker_port) or _free_port()
        security = None if config.open_lab else identity.security
        broker = start_broker(config.broker_kind, config.data / BROKER_FOLDER, port, security=security)
        self._stack.callback(broker.stop)
        broker.wait_ready(BROKER_READY_S)
        if config.open_lab:
            log.warning("open_lab", broker=broker.url, remedy="for laboratories: any program here may say anything")
            return broker.url, broker.url
        identity.watch(broker)
        return broker.url, broker_url_for_devices(config, port)

    def _page_certificate(self, identity: IdentityDesk) -> PageCertificate | None:
        """Return the certificate of page and API; None: it speaks plain HTTP."""
        config = self._config
        if config.tls is None:
            return None
        if isinstance(config.tls, TlsFiles):
            return PageCertificate(config.tls, time.time)
        names = [each for each in (*LOOPBACK, config.host, *config.names) if each not in ANY_HOST]
        file = config.data / PAGE_CERTIFICATE_FILE

        def renew() -> float:
            issued = identity.enrolment.ca.issue_server(list(dict.fromkeys(names)), file, time.time())
            return (issued.issued_at + issued.expires_at) / 2

        return PageCertificate(TlsFiles(file, file), time.time, renew)

    def _page_file(self) -> Path | None:
        """Return the file with the certificate of page and API; None: they speak plain HTTP."""
        tls = self._config.tls
        if tls is None:
            return None
        return tls.certificate if isinstance(tls, TlsFiles) else self._config.data / PAGE_CERTIFICATE_FILE

    def _push_metrics(self, url: str, services: Services, exposition: prometheus.Exposition) -> None:
        resource = {"service.name": "muster-controller", "service.instance.id": services.fleet_id}
        pusher = Pusher(url, lambda: exposition.families(services), resource, __version__, time.time)
        pusher.start()
        self._stack.callback(pusher.stop)

    def _serve_http(self, services: Services, listener: socket.socket, certificate: PageCertificate | None) -> None:
        app = create_app(services)
        if self._config.otlp_url is not None:
            self._push_metrics(self._config.otlp_url, services, prometheus.exposition_of(app))
        add_pages(app, services, *ROUTERS)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                ssl_context_factory=None if certificate is None else lambda _config, _default: certificate.context,
                timeout_graceful_shutdown=5,
            )
        )
        thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
        thread.start()

        def stop() -> None:
            services.hub.close()
            server.should_exit = True
            thread.join(10.0)

        self._stack.callback(stop)
        deadline = time.monotonic() + HTTP_READY_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ServerUnavailable("the HTTP server does not come up; its log says why")
            time.sleep(0.01)


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


def _link_config(broker_url: str, client_id: str, paths: Paths) -> LinkConfig:
    broker = parse_broker_url(broker_url)
    with_certificate = broker.tls and broker.username is None  # Whoever gives a password has a broker of another kind.
    return LinkConfig(
        broker=broker,
        ca_path=paths.clients if with_certificate else None,
        cert_path=paths.controller if with_certificate else None,
        key_path=paths.controller if with_certificate else None,
        client_id=client_id,
        session_expiry_s=SESSION_S,
        max_inflight=1000,
        max_queued_out=QUEUED_OUT_MAX,
        reconnect_min_s=0.2,
        reconnect_max_s=10.0,
    )


def _quietly(close: Callable[[], None]) -> None:
    """Write down at the end what the database takes."""
    with suppress(LedgerError):
        close()


def _told(touched: Touched) -> list[Change]:
    told = [Change("device", device) for device in sorted(touched.devices)]
    told += [Change("rollout", rollout) for rollout in sorted(touched.rollouts)]
    return [*told, Change("note", "all")] if touched.notes else told


def _counters(fleet: Fleet, thread: FleetThread, wire: LinkWire, door: Door) -> dict[str, int]:
    return {
        "malformed": fleet.counters.malformed,
        "events": fleet.counters.events,
        "repeated_events": fleet.counters.repeated_events,
        "assignments": fleet.counters.assignments,
        "chunks_sent": fleet.courier.chunks_sent,
        "bytes_sent": fleet.courier.bytes_sent,
        "published": wire.counters.published,
        "dropped": wire.counters.dropped,
        "received": door.counters.received,
        "reconnects": door.counters.reconnects,
        "faults": thread.faults,
    }


def _lock(data: Path) -> Callable[[], None]:
    """Take the data folder for this process and return how to give it back; the system does so when we die."""
    descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ServerUnavailable(f"another controller uses {data}; end it, or choose another with --data") from error
    return lambda: os.close(descriptor)


def _url(config: ServerConfig, port: int) -> str:
    """Return where operators find the page and the API."""
    is_any = config.host in ANY_HOST
    host = config.names[0] if config.names and config.tls else HOST if is_any else config.host
    return f"{'https' if config.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(config: ServerConfig) -> socket.socket:
    port, host = config.port, config.host
    if host not in LOOPBACK and config.tls is None:
        raise ServerUnavailable(
            f"--host {host} is beyond this machine, and would carry passwords in the clear; give --tls-cert and"
            " --tls-key, or --tls-fleet-ca, or put a proxy that does TLS on this machine (with --name)"
        )
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServerUnavailable(
            f"port {port} on {host} cannot be used ({error.strerror}); end what has it, or choose another with --port"
        ) from error
    return listener


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _without_user(url: str) -> str:
    """Return a broker's URL as devices use it: their certificates say who they are."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _newest_root(releases: Releases) -> bytes:
    for message in releases.trust_messages():
        if message.role == "root":
            newest = max(message.files, key=lambda name: int(name.partition(".")[0]))
            return message.files[newest].encode()
    return b""
