"""The child process around an embedded broker: start, readiness, supervision, stop.

It knows one program per `BrokerKind` through `BrokerProgram`, and nothing of topics or devices. A thread per broker
starts the child, waits for its end and starts it again; `stop` ends both.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import structlog

from muster_controller.broker import mosquitto, nats
from muster_controller.broker.mosquitto import Mosquitto
from muster_controller.broker.nats import Nats
from muster_shared.errors import MusterError

STOP_TIMEOUT_S = 10.0  # Mosquitto writes its database on the way out.
RESTART_MIN_S = 0.2
RESTART_MAX_S = 10.0
STEADY_AFTER_S = 30.0  # A child that lived this long starts the back-off anew.
_PROBE_EVERY_S = 0.05
_PROBE_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2_000

# MQTT 3.1.1: clean session, keepalive 10 s, no client id. Every broker we know takes it.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"
_CONNACK = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"

# Runs first in the child, then becomes the broker (same pid). `preexec_fn` is not safe in a process with threads.
# 1 is PR_SET_PDEATHSIG: the kernel ends the broker when we die, however that happens. Only Linux has it; elsewhere a
# controller that is killed leaves its broker behind, and the next one finds the port taken.
_LAUNCHER = """
import contextlib, ctypes, os, resource, signal, sys
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the controller ended meanwhile")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 1 << 20 else 1 << 20, hard))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class BrokerKind(StrEnum):
    """Which program serves; AUTO takes Mosquitto where it is installed, else the NATS server."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    NATS = "nats"


class BrokerUnavailable(MusterError):
    """There is no broker program, its port is taken, or it does not answer; the message says what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class Broker(Protocol):
    """A broker that the controller may use, whoever runs it."""

    @property
    def url(self) -> str:
        """Where `Link` connects to."""
        ...

    def wait_ready(self, timeout_s: float) -> None:
        """Return once it answers an MQTT CONNECT. Raises BrokerUnavailable when it does not."""
        ...

    def stop(self) -> None:
        """End it, if it is ours to end."""
        ...


class BrokerProgram(Protocol):
    """A server that can be run: `Mosquitto` or `Nats`."""

    def command(self, configuration: Path) -> list[str]:
        """Return what runs it; the first word is the absolute path of the program."""
        ...

    def configuration(self, folder: Path, port: int) -> str:
        """Return its configuration file for data in `folder` and a listener on 127.0.0.1:`port`."""
        ...


def find_broker(kind: BrokerKind) -> tuple[BrokerKind, BrokerProgram]:
    """Return the program to run and its kind (never AUTO).

    Raises:
        BrokerUnavailable: it is not installed.
    """
    if kind in (BrokerKind.AUTO, BrokerKind.MOSQUITTO) and (found := Mosquitto.find()) is not None:
        return BrokerKind.MOSQUITTO, found
    if kind in (BrokerKind.AUTO, BrokerKind.NATS) and (server := Nats.find()) is not None:
        return BrokerKind.NATS, server
    match kind:
        case BrokerKind.MOSQUITTO:
            raise BrokerUnavailable("no Mosquitto is installed here", mosquitto.INSTALL_HINT)
        case BrokerKind.NATS:
            raise BrokerUnavailable("no NATS server is installed here", nats.INSTALL_HINT)
        case BrokerKind.AUTO:
            raise BrokerUnavailable(
                "no MQTT broker is installed here",
                f"{mosquitto.INSTALL_HINT}, or {nats.INSTALL_HINT}, or name yours with --broker-url",
            )


class EmbeddedBroker:
    """A running broker and the thread that watches it.

    start -> running -> (ended by itself) lost -> [wait] -> running      stop -> ended
                ^_______________ restart _________|
    """

    def __init__(
        self, kind: BrokerKind, program: BrokerProgram, data_dir: Path, port: int, *, supervised: bool
    ) -> None:
        self.kind = kind
        self.port = port
        self._program = program
        self._folder = data_dir.absolute()
        self._supervised = supervised
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._stopping = threading.Event()
        self._restart_wanted = False
        self._has_answered = False
        self._failure: BrokerUnavailable | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"broker-{kind}", daemon=True)

    @property
    def url(self) -> str:
        """Where `Link` connects to."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the latest child."""
        with self._changed:
            assert self._process is not None, "the broker was never started"
            return self._process.pid

    def start(self) -> None:
        """Start the child, and watch it. Once.

        Raises:
            BrokerUnavailable: the program cannot be run, or its folder cannot be written.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._starts > 0 or self._failure is not None)
            if self._failure is not None:
                raise self._failure

    def wait_ready(self, timeout_s: float) -> None:
        """Return once it answers an MQTT CONNECT.

        Raises:
            BrokerUnavailable: it ended before it ever answered, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if answers(self.port, timeout_s=min(_PROBE_TIMEOUT_S, timeout_s)):
                self._has_answered = True  # Perhaps sooner than the supervisor looked: it did come up.
                return
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                if time.monotonic() > deadline:
                    raise self._unavailable(f"the embedded broker ({self.kind}) does not answer")
                self._changed.wait(_PROBE_EVERY_S)

    def stop(self) -> None:
        """End the child, gently at first, and stop watching. Doing it twice is harmless."""
        with self._changed:
            self._stopping.set()
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.terminate()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join()

    def restart(self) -> None:
        """End the child gently and start it on the same port and data, or start it if it is down.

        Raises:
            BrokerUnavailable: it was stopped, or did not come up again.
        """
        with self._changed:
            process, before = self._process, self._starts
            if self._stopping.is_set() or process is None or not self._thread.is_alive():
                raise self._unavailable(f"the embedded broker ({self.kind}) was stopped")
            self._restart_wanted = True
            self._changed.notify_all()
        process.terminate()
        with self._changed:
            if self._changed.wait_for(lambda: self._starts > before, STOP_TIMEOUT_S):
                return
        process.kill()
        with self._changed:
            if not self._changed.wait_for(lambda: self._starts > before, STOP_TIMEOUT_S):
                raise self._unavailable(f"the embedded broker ({self.kind}) does not start again")

    def kill(self) -> None:
        """End the child as a crash would (SIGKILL), for fault tests; a supervised one comes back by itself."""
        with self._changed:
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The thread. It also starts the children: PR_SET_PDEATHSIG fires when the *thread* that forked ends.

    def _supervise(self) -> None:
        retry = 0
        lost = False
        while True:
            with self._changed:
                if self._stopping.is_set():
                    return
                process: subprocess.Popen[bytes] | None = None
                try:
                    process = self._spawn()
                except OSError as error:
                    if not self._has_answered:
                        self._give_up(f"the embedded broker ({self.kind}) cannot be run: {error}")
                        return
                else:
                    self._process = process
                    self._starts += 1
                    self._restart_wanted = False
                self._changed.notify_all()
            began = time.monotonic()
            returncode: int | None = None
            if process is not None:
                if self._comes_up(process):
                    self._has_answered = True
                    if lost:
                        lost = False
                        _log.info("broker_back", kind=self.kind, pid=process.pid, port=self.port)
                returncode = process.wait()
            with self._changed:
                if self._stopping.is_set():
                    return
                if self._restart_wanted:
                    retry = 0
                    continue
                if not self._has_answered:
                    self._give_up(f"the embedded broker ({self.kind}) ended with status {returncode} at once")
                    return
            if not lost:
                lost = True
                _log.warning("broker_lost", kind=self.kind, returncode=returncode, port=self.port)
            if time.monotonic() - began >= STEADY_AFTER_S:
                retry = 0
            delay_s = min(RESTART_MAX_S, RESTART_MIN_S * 2.0 ** min(retry, 16))
            retry += 1
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping.is_set() or self._restart_wanted, delay_s if self._supervised else None
                )

    def _comes_up(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until this child answers; False if it ends before, or is about to be ended."""
        while process.poll() is None:
            if answers(self.port, timeout_s=_PROBE_TIMEOUT_S):
                return True
            with self._changed:
                if self._stopping.is_set() or self._restart_wanted:
                    return False
                self._changed.wait(_PROBE_EVERY_S)
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration = self._folder / f"{self.kind}.conf"
        fresh = configuration.with_suffix(".conf.new")
        fresh.write_text(self._program.configuration(self._folder, self.port), encoding="utf-8")
        fresh.replace(configuration)
        with self._output.open("wb") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())),
                    *self._program.command(configuration),
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the controller, which then stops us in its own order.
            )

    @property
    def _output(self) -> Path:
        return self._folder / f"{self.kind}.out"

    def _give_up(self, reason: str) -> None:
        self._failure = self._unavailable(reason)
        self._changed.notify_all()

    def _unavailable(self, reason: str) -> BrokerUnavailable:
        said = ""
        for path in (self._output, self._folder / f"{self.kind}.log"):
            with suppress(FileNotFoundError):
                said = path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip() or said
        last = said.splitlines()[-1] if said else "nothing"
        return BrokerUnavailable(f"{reason} (it last said: {last})", f"see the logs in {self._folder}")


def start_broker(kind: BrokerKind, data_dir: Path, port: int, *, supervised: bool = True) -> EmbeddedBroker:
    """Start a broker as a child process; it does not answer yet when this returns (`wait_ready`).

    Args:
        data_dir: made if missing; its configuration, database and logs live there.
        port: on 127.0.0.1.
        supervised: start it again when it ends by itself. Without, it stays down until `restart`.

    Raises:
        BrokerUnavailable: no such program, or the port is taken.
    """
    found_kind, program = find_broker(kind)
    _require_free(port)
    broker = EmbeddedBroker(found_kind, program, data_dir, port, supervised=supervised)
    broker.start()
    return broker


def answers(port: int, timeout_s: float) -> bool:
    """Whether something on 127.0.0.1:`port` takes an MQTT connection: one real CONNECT, and a goodbye."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as sock:
            sock.sendall(_CONNECT)
            reply = b""
            while len(reply) < len(_CONNACK) and (more := sock.recv(len(_CONNACK) - len(reply))):
                reply += more
            if reply == _CONNACK:
                sock.sendall(_DISCONNECT)
            return reply == _CONNACK
    except OSError:
        return False


def _require_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # A closed connection's port is free.
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            raise BrokerUnavailable(
                f"port {port} on 127.0.0.1 cannot be used for the embedded broker: {error.strerror}",
                "end the program that has it, or choose another with --broker-port",
            ) from error
