"""The child process around an embedded broker: start, readiness, supervision, stop.

It knows one program per `BrokerKind` through `BrokerProgram`, and nothing of topics or devices. A thread per broker
starts the child, waits for its end and starts it again; `stop` ends both.
"""

import signal
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import structlog

from muster_controller.broker.knock import answers, answers_tls, kick
from muster_controller.broker.launching import launch, require_free, write_files
from muster_controller.broker.programs import BrokerKind, BrokerProgram, BrokerUnavailable, find_broker
from muster_controller.broker.security import Admission, BrokerSecurity

__all__ = [
    "Broker",
    "BrokerKind",
    "BrokerProgram",
    "BrokerUnavailable",
    "EmbeddedBroker",
    "answers",
    "find_broker",
    "start_broker",
]

STOP_TIMEOUT_S = 10.0  # Mosquitto writes its database on the way out.
RESTART_MIN_S = 0.2
RESTART_MAX_S = 10.0
STEADY_AFTER_S = 30.0  # A child that lived this long starts the back-off anew.
_PROBE_EVERY_S = 0.05
_PROBE_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2_000

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


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


class EmbeddedBroker:
    """A running broker and the thread that watches it.

    start -> running -> (ended by itself) lost -> [wait] -> running      stop -> ended
                ^_______________ restart _________|
    """

    def __init__(
        self,
        kind: BrokerKind,
        program: BrokerProgram,
        data_dir: Path,
        port: int,
        *,
        supervised: bool,
        security: BrokerSecurity | None = None,
    ) -> None:
        self.kind = kind
        self.port = port
        self._program = program
        self._folder = data_dir.absolute()
        self._supervised = supervised
        self._security = security
        self._admission: Admission | None = None
        self._refreshing = threading.Lock()  # One `refresh` at a time: the last one asked is the last one written.
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._up: subprocess.Popen[bytes] | None = None  # The child that answered: it takes signals as it should.
        self._reload_due = False
        self._kicked: frozenset[str] = frozenset()
        self._starts = 0
        self._stopping = threading.Event()
        self._restart_wanted = False
        self._has_answered = False
        self._failure: BrokerUnavailable | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"broker-{kind}", daemon=True)

    @property
    def url(self) -> str:
        """Where `Link` connects to."""
        if self._security is not None:
            return f"mqtts://{self._security.local_host}:{self.port}"
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
            BrokerUnavailable: the program cannot be run, its folder cannot be written, or a certificate not be read.
        """
        if self._security is not None:
            try:
                self._context()
            except OSError as error:
                raise BrokerUnavailable(
                    f"the certificates of the broker cannot be read: {error}", "see `muster ca show`"
                ) from error
            self._admission = self._security.admission()
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
            if self._answers(min(_PROBE_TIMEOUT_S, timeout_s)):
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

    def refresh(self) -> None:
        """Let those in that may come now, and nobody else: write the configuration anew and make the child read it.

        Connections of those who may stay are left alone; a revoked one is cut within a second or so and is refused from
        then on. Returns once the child is told; a child that is just coming up is told as soon as it answers. Without
        security there is nothing to do.

        Raises:
            OSError: a file cannot be written.
            Exception: whatever the call-backs of the security raise; nothing has changed then.
        """
        if self._security is None:
            return
        with self._refreshing:
            admission = self._security.admission()
            with self._changed:
                self._admission = admission
                self._write()
            self._reload()

    def reload_certificates(self) -> None:
        """Make the child read its certificate and the revocation list again, for connections to come."""
        if self._security is None:
            return
        with self._refreshing:
            self._reload()

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

    # The thread. It also starts the children, for `launching` ties their lives to it.

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
                    self._reload_due = False  # It starts with the newest files,
                    self._kicked = self._revoked()  # and without any connection.
                    self._starts += 1
                    self._restart_wanted = False
                self._changed.notify_all()
            began = time.monotonic()
            returncode: int | None = None
            if process is not None:
                if self._comes_up(process):
                    self._has_answered = True
                    with self._changed:
                        self._up = process
                        due = self._reload_due
                    if due:
                        self._reload()
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
            if self._answers(_PROBE_TIMEOUT_S):
                return True
            with self._changed:
                if self._stopping.is_set() or self._restart_wanted:
                    return False
                self._changed.wait(_PROBE_EVERY_S)
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write()
        configuration = self._folder / f"{self.kind}.conf"
        return launch(self._program.command(configuration), self._folder, self._output)

    def _write(self) -> None:
        write_files(self._folder, self._program.files(self._folder, self.port, self._admission))

    def _reload(self) -> None:
        """Make the child read its files again, and cut the connections of the newly revoked."""
        with self._changed:
            process = self._up
            if process is None or process is not self._process:
                self._reload_due = True  # A signal would end a program that does not expect it yet.
                return
            self._reload_due = False
            revoked = self._revoked()
            fresh, self._kicked = sorted(revoked - self._kicked), revoked & self._kicked
            process.send_signal(signal.SIGHUP)
        gone = {one for one in fresh if self._kick(one)}
        with self._changed:
            if process is self._process:
                self._kicked |= gone

    def _kick(self, client_id: str) -> bool:
        if self._program.kick_socket is None or self._security is None:
            return True
        path = self._folder / self._program.kick_socket
        # It is taken after the signal, and so are packets: who is cut comes back to the new rules.
        gone = kick(path, client_id, self._security.local_host, self._context(), _PROBE_TIMEOUT_S)
        if not gone:
            _log.warning(
                "broker_kick_failed", client_id=client_id, remedy="it has no rights; the next refresh tries again"
            )
        return gone

    def _revoked(self) -> frozenset[str]:
        return frozenset(self._admission.revoked if self._admission is not None else ())

    def _answers(self, timeout_s: float) -> bool:
        if self._security is None:
            return answers(self.port, timeout_s)
        host = self._security.local_host
        try:
            return answers_tls(host, self.port, host, self._context(), timeout_s)
        except OSError:  # A certificate that is just being replaced.
            return False

    def _context(self) -> ssl.SSLContext:
        assert self._security is not None
        context = ssl.create_default_context(cafile=str(self._security.ca))
        context.load_cert_chain(self._security.client_certificate, self._security.client_key)
        return context

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


def start_broker(
    kind: BrokerKind, data_dir: Path, port: int, *, supervised: bool = True, security: BrokerSecurity | None = None
) -> EmbeddedBroker:
    """Start a broker as a child process; it does not answer yet when this returns (`wait_ready`).

    Args:
        data_dir: made if missing; its configuration, database and logs live there.
        port: on 127.0.0.1, or on the host of `security`.
        supervised: start it again when it ends by itself. Without, it stays down until `restart`.
        security: take certificates only, and give everybody the rights of `permissions`. None is for laboratories:
            without TLS, for everybody on this machine.

    Raises:
        BrokerUnavailable: no such program, the port is taken, or a certificate cannot be read.
    """
    found_kind, program = find_broker(kind)
    require_free("127.0.0.1" if security is None else security.host, port)
    broker = EmbeddedBroker(found_kind, program, data_dir, port, supervised=supervised, security=security)
    broker.start()
    return broker
