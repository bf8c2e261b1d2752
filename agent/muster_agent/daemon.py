"""The device daemon: puts the parts together, runs them, and takes them apart.

    main thread        HTTP for local applications (asyncio, uvloop), signals, the service manager
    conductor thread   every decision, the journal, the store (`inbox`)
    link thread        MQTT          lab thread   loading and proving releases      consent thread   the device's rules
    calls thread       what the controller asks of it now (self-test, benchmark, log)

What the device holds serves first: the broker is called afterwards (`_connect`), since what it brings is work. It exits
on a signal and on a configuration that cannot work, never because of a message or a missing broker.
"""

import asyncio
import fcntl
import gc
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import structlog
import uvloop

from muster_agent import __version__, measuring
from muster_agent.calls.checkup import Checkup
from muster_agent.calls.desk import CallDesk
from muster_agent.calls.ring import RING
from muster_agent.conductor import Conductor, Identity
from muster_agent.config import AgentConfig
from muster_agent.consent.asking import DeviceConsent
from muster_agent.consent.local_time import LocalTime, local_time
from muster_agent.consent.rules import Rules
from muster_agent.consent.sensors import PsutilSensors
from muster_agent.desk import Desk
from muster_agent.engines import registry
from muster_agent.errors import AgentRunning, ConfigInvalid
from muster_agent.fronts import open_fronts
from muster_agent.identity import key_uri
from muster_agent.identity.asking import Order, ask_in_process
from muster_agent.identity.folder import Enrolled
from muster_agent.identity.renewing import Renewing
from muster_agent.inbox import ConductorThread
from muster_agent.io.client_id import client_id
from muster_agent.io.disk import OsDisk
from muster_agent.io.glibc import limit_arenas, release_memory
from muster_agent.io.host import HardwareOverrides, PsutilHost, detect_hardware, usable_cpus
from muster_agent.io.journal import SqliteJournal
from muster_agent.io.notify import ServiceManager
from muster_agent.io.store import ContentStore
from muster_agent.io.trust import TrustClient
from muster_agent.io.trust_process import CheckProcess
from muster_agent.io.tuning_store import TuningStore
from muster_agent.io.views import Views
from muster_agent.io.wire import MqttWire
from muster_agent.lab import EngineLab
from muster_agent.logs import configure_logs
from muster_agent.metrics.hourly import Hourly
from muster_agent.metrics.meters import AllMeters
from muster_agent.serving.admission import Admission, bearer
from muster_agent.serving.app import App
from muster_agent.serving.config import in_window
from muster_agent.serving.recent import LOOK_S as RECENT_LOOK_S
from muster_agent.serving.recent import Recent
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.spill import Spill
from muster_agent.serving.table import ServingTable
from muster_agent.serving.tracing import OtlpTracing
from muster_agent.status import StatusApp
from muster_agent.trials import EngineTrials
from muster_shared.ids import ModelName
from muster_shared.link import Link, LinkConfig, LinkCounters, LinkItem, Will
from muster_shared.messages import Hardware, Presence, encode
from muster_shared.topics import Channel, DeviceTopic, build, device_filters

WILL_DELAY_S = 15  # A short break of the line is not worth a device that seems gone.
SESSION_EXPIRY_S = 60  # The will waits no longer than the session lives, so this is the longer of the two.
STOP_TIMEOUT_S = 5.0
SERVE_FIRST_S = 2.0  # A model that takes longer to load must not keep the device from being seen.
LOOK_S = 0.01
WINDOW_LOOK_S = 20.0

log = structlog.get_logger()


def run(config: AgentConfig, environment: Mapping[str, str]) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        AgentRunning: another agent has the data folder.
        ConfigInvalid: what the configuration names is not there, or cannot be used.
        JournalFailed: the journal cannot be opened.
    """
    configure_logs(logging.INFO)
    np.seterr(all="ignore")  # Values of callers overflow sums that only ask whether they are finite.
    limit_arenas()
    _make_data_dir(config.data_dir)
    lock = _lock(config.data_dir / "agent.lock")
    try:
        uvloop.run(_serve(config, ServiceManager(environment)))
    finally:
        os.close(lock)


async def _serve(config: AgentConfig, manager: ServiceManager) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    root = _bootstrap_root(config)
    hardware = _hardware(config)
    table = ServingTable(config.serving)
    thread = ConductorThread(config.fleet, time.time, time.monotonic)
    disk = OsDisk(config.data_dir)
    store = ContentStore(disk)
    journal = SqliteJournal(config.data_dir / "journal.sqlite", outbox_events_max=config.outbox_events_max)
    measured, ring = measuring.metrics_journal(config), measuring.outliers(config)
    meters = AllMeters(
        table,
        counting=config.metrics.enabled,
        tell_drift=config.metrics.tell_drift,
        unloaded=lambda: lab.unloaded(),
        recall=measured.recall,
        keeper=ring,
    )
    views = Views(disk)
    lab = EngineLab(
        store,
        views,
        table,
        thread.post,
        threads=config.threads or usable_cpus(),
        runtimes=hardware.runtimes,
        tunings=TuningStore(disk),
        memory_mb=config.serving.memory_budget_mb or None,
        pinned=frozenset(ModelName(name) for name, model in config.serving.models.items() if model.pinned),
        metered=meters,
    )
    recent = Recent(table)
    local = local_time(config.timezone, time.time)
    rules = Rules(config.consent, PsutilSensors(), recent.requests_per_s)
    consent = DeviceConsent(rules, local, time.time, thread.post, config.consent.retry_s)
    trials = EngineTrials(lab, table, loop.call_soon_threadsafe, thread.post)
    service = Service(table, config.serving)
    tracing = None if config.serving.tracing is None else OtlpTracing(config.serving.tracing, config.device)
    if tracing is not None:
        service.trace(tracing)
    desk = Desk(thread, lambda: conductor, lab, table)
    service.when_absent(desk.absent)
    admission = Admission(config.serving)
    is_remote = config.http.allow_remote or config.grpc.allow_remote
    regions = Regions(may_use=(lambda status: False) if is_remote else None)  # Memory is shared on one host only.
    spill = None if config.serving.upstream is None else Spill(config.serving.upstream)
    app = App(
        service,
        agent_version=__version__,
        admission=admission,
        regions=regions,
        ready=lambda: _is_ready(conductor, table, lab),
        repository=desk,
        trials=desk,
        spill=spill,
        is_local=not is_remote,
    )
    enrolled = _enrolled(config)
    status = StatusApp(
        app,
        lambda: thread.ask(conductor.twin),
        lambda: link.is_connected,
        __version__,
        lambda: None if renewing is None else renewing.status(),
        windows=(lambda: measuring.windows(config, sender, link, table)) if config.metrics.enabled else None,
        may_see=lambda request: admission.caller(bearer(request.headers.get(b"authorization")), request.peer),
    )
    fronts = await open_fronts(
        config,
        service,
        admission,
        status,
        regions=regions,
        ready=lambda: _is_ready(conductor, table, lab),
        repository=desk,
    )

    boot = secrets.token_hex(8)

    def heard(item: LinkItem) -> None:
        sender.heard(item)
        thread.heard(item)

    link = _link(config, boot, heard)
    renewing = None if enrolled is None else _renewing(config, enrolled, link)
    wire = MqttWire(link, config.fleet)
    checks = CheckProcess()
    trust = TrustClient(config.data_dir / "trust", root, lambda: datetime.now(UTC), checks)
    granted_at = None if enrolled is None else enrolled.granted_at
    sender = measuring.sending(config, measured, link, trust.view, granted_at)
    if config.metrics.enabled:
        sender.open()
    calls = CallDesk(
        config.fleet,
        config.device,
        allow=config.calls.allow,
        keys=lambda: None if (view := trust.view()) is None else view.keys,
        opener=checks,
        looks=Checkup(
            lambda: {name: place.served for name, place in table.places().items()}, views.folder, config.data_dir
        ),
        ring=RING,
        answer=lambda raw: wire.publish(DeviceTopic(config.device, Channel.ANSWER), raw, qos=1),
        clock=time.time,
    )
    hourly = Hourly(sender, meters, measured, speed=config.metrics.clock_speed)
    conductor = Conductor(
        _identity(config, hardware, boot, fronts.http.port, local),
        journal=journal,
        store=store,
        trust=trust,
        wire=wire,
        lab=lab,
        host=PsutilHost(config.data_dir, traffic=lambda: _bytes(link.counters)),
        clock=time.time,
        random=random.SystemRandom(),
        consent=consent,
        trials=trials,
        lately=recent,
        called=calls.take,
    )
    lab.attach(conductor)
    consent.attach(conductor)
    trials.attach(conductor)
    thread.begin(conductor, link.ack)
    calls.start()
    log.info(
        "agent_started",
        version=__version__,
        device=config.device,
        fleet=config.fleet,
        endpoint=conductor.identity.endpoint,
        runtimes=hardware.runtimes,
    )
    _leave_word(config.data_dir / "endpoint", conductor.identity.endpoint)
    manager.ready()
    watchdog = loop.create_task(_watch(manager, thread))
    off_peak = loop.create_task(_watch_window(config.serving.later_window, table))
    looking = loop.create_task(_watch_recent(recent))
    metering = loop.create_task(_watch_meters(meters))
    leaving = loop.create_task(hourly.run()) if config.metrics.enabled else None
    certificates = None if renewing is None else loop.create_task(renewing.run())
    connecting = loop.create_task(_connect(link, thread, conductor, table, lab))

    await stop.wait()

    log.info("agent_stopping")
    manager.stopping()
    watchdog.cancel()
    off_peak.cancel()
    looking.cancel()
    metering.cancel()
    if leaving is not None:
        leaving.cancel()
    if certificates is not None:
        certificates.cancel()
    connecting.cancel()
    gone = Presence(device=config.device, boot=boot, online=False, sent_at=time.time())
    farewell = _presence_topic(config)
    ended = await asyncio.to_thread(
        thread.end, lambda: wire.publish(farewell, encode(gone), qos=1, retain=True), STOP_TIMEOUT_S
    )
    await asyncio.to_thread(calls.stop, STOP_TIMEOUT_S)
    await asyncio.to_thread(link.stop, STOP_TIMEOUT_S)
    await fronts.stop(STOP_TIMEOUT_S)
    if leaving is not None:
        await hourly.rest()
    if ring is not None:
        await asyncio.to_thread(ring.close)
    regions.close()
    if spill is not None:
        spill.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    # Requests that their callers gave up leave on this loop.
    await asyncio.to_thread(table.close, STOP_TIMEOUT_S)
    if ended:
        journal.close()
    checks.close()
    log.info("agent_stopped")


def _link(config: AgentConfig, boot: str, heard: Callable[[LinkItem], None]) -> Link:
    gone = Presence(device=config.device, boot=boot, online=False, sent_at=time.time())
    topic = build(config.fleet, _presence_topic(config))
    link = Link(
        LinkConfig(
            config.broker,
            client_id=client_id(config.data_dir, config.fleet, config.device),
            clean_start=True,  # Chunks that an agent before this one waited for are no use to it.
            session_expiry_s=SESSION_EXPIRY_S,
            will=Will(topic, encode(gone), delay_s=WILL_DELAY_S),
            ca_path=config.tls.ca,
            cert_path=config.tls.cert,
            key_path=config.tls.key,
        ),
        heard,
        rng=random.SystemRandom(),
    )
    link.subscribe(device_filters(config.fleet, config.device))
    return link


def _enrolled(config: AgentConfig) -> Enrolled | None:
    """Return what the link uses; None: a certificate that somebody else looks after, or none."""
    folder = config.identity_folder
    return folder.current() if config.tls.cert == folder.certificate_path else None


def _renewing(config: AgentConfig, enrolled: Enrolled, link: Link) -> Renewing:
    folder = config.identity_folder
    order = Order(folder=str(folder.path), key=config.identity.key, agent_version=__version__)
    return Renewing(
        folder,
        enrolled,
        key_kind=key_uri.kind(config.identity.key),
        ask=lambda: ask_in_process(order),
        link=link,
        follows_broker=config.broker_url == enrolled.broker_url,
        random=random.SystemRandom(),
    )


def _presence_topic(config: AgentConfig) -> DeviceTopic:
    return DeviceTopic(config.device, Channel.PRESENCE)


def _identity(config: AgentConfig, hardware: Hardware, boot: str, port: int | None, local: LocalTime) -> Identity:
    address = config.http.address
    endpoint = f"unix:{config.http.unix_socket}" if address is None else f"http://{_host(address[0])}:{port}"
    return Identity(
        fleet=config.fleet,
        device=config.device,
        boot=boot,
        agent_version=__version__,
        hardware=hardware,
        labels=config.labels,
        endpoint=endpoint,
        timezone=local.name,
        twin_every_s=config.twin_every_s,
    )


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _hardware(config: AgentConfig) -> Hardware:
    installed = registry.available()
    runtimes = tuple(runtime for runtime in config.runtimes if runtime in installed)
    if not runtimes:
        log.error("engine_missing", enabled=config.runtimes, installed=installed)
    declared = config.hardware
    overrides = HardwareOverrides(declared.arch, declared.accelerators, declared.cpu_count, declared.memory_mb)
    return detect_hardware(config.device_class, runtimes, overrides, ask_openvino=declared.ask_openvino)


def _is_ready(conductor: Conductor, table: ServingTable, lab: EngineLab) -> bool:
    """Whether every model that has a release serves one, or does when it is asked, and there is at least one."""
    serving = table.places().keys() | lab.unloaded()
    models = conductor.state.models  # A frozen value: it is replaced as a whole, so any thread may look.
    return bool(serving) and all(name in serving for name, model in models.items() if model.slots.active is not None)


async def _connect(
    link: Link, thread: ConductorThread, conductor: Conductor, table: ServingTable, lab: EngineLab
) -> None:
    """Call the broker once everything serves that the device holds, or after SERVE_FIRST_S.

    What has started is for good: it is neither looked through for garbage any more, nor is what it left kept.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(SERVE_FIRST_S):
            await asyncio.wrap_future(thread.ask(lambda: None))  # The journal is read.
            while any(model.slots.active is not None for model in conductor.state.models.values()):
                if _is_ready(conductor, table, lab):
                    break
                await asyncio.sleep(LOOK_S)
    link.start()
    gc.collect()
    gc.freeze()
    release_memory()


async def _watch(manager: ServiceManager, thread: ConductorThread) -> None:
    """Say `alive` from the conductor's thread, at the loop's request: it takes both to be alive."""
    if manager.watchdog_s is None:
        return
    while True:
        await asyncio.sleep(manager.watchdog_s / 3)
        thread.ask(manager.alive)


async def _watch_window(window: str, table: ServingTable) -> None:
    """Let work for later run within the off-peak window only, if there is one."""
    while window:
        now = time.localtime()
        table.open_later(in_window(window, now.tm_hour * 60 + now.tm_min) is not False)
        await asyncio.sleep(WINDOW_LOOK_S)


async def _watch_recent(recent: Recent) -> None:
    """Keep readings of what serves, so that it is known how it did before a release took over."""
    while True:
        recent.look()
        await asyncio.sleep(RECENT_LOOK_S)


def _bytes(counters: LinkCounters) -> tuple[int, int]:
    return counters.sent_bytes, counters.received_bytes


async def _watch_meters(meters: AllMeters) -> None:
    """Have what was counted folded, so that drift is seen soon."""
    due_s = 0.0
    while True:
        await asyncio.sleep(due_s)
        due_s = meters.look(time.process_time(), time.monotonic())


def _bootstrap_root(config: AgentConfig) -> bytes:
    assert config.bootstrap_root is not None, "load_config sees to it"
    try:
        return config.bootstrap_root.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"bootstrap_root: {config.bootstrap_root} cannot be read: {error.strerror}") from error


def _make_data_dir(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigInvalid(f"data_dir: {folder} cannot be made: {error.strerror}") from error


def _leave_word(path: Path, endpoint: str | None) -> None:
    """Tell `muster-agent status` which free port was taken."""
    try:
        path.write_text(f"{endpoint}\n", encoding="utf-8")
    except OSError as error:  # A full disk is no reason not to serve.
        log.warning("endpoint_not_written", error=str(error))


def _lock(path: Path) -> int:
    """Return a descriptor that holds the data folder for this process until it is closed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigInvalid(f"data_dir: {path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AgentRunning(f"another agent works in {path.parent}; stop it, or choose another data_dir") from error
    return descriptor
