"""`muster-agent supervise`: keeps the agent running where there is no systemd, and is to it what systemd would be.

    SIGTERM, SIGINT   stop the agent, then end            SIGHUP   start the agent anew (after an upgrade)

It speaks sd_notify(3) with the agent over an abstract socket, on which the kernel says who sent what, and asks for its
watchdog's word. What the agent writes goes to a file of bounded length. It opens no port and reads no configuration.
"""

import ctypes
import fcntl
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from muster_agent.errors import AgentRunning
from muster_agent.install.supervising import Heard, Order, Patience, Phase, Watch, advance

PID_FILE = "supervisor.pid"
LOG_FILE = "agent.log"
LOG_BYTES_MAX = 8 * 1024 * 1024  # And as much again in the one before it.
LOOK_S = 0.5
HOLD_S = 1.0
_DATAGRAM_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_ORDERS = {signal.SIGTERM: Heard.STOP, signal.SIGINT: Heard.STOP, signal.SIGHUP: Heard.RESTART}
_CREDENTIALS = struct.Struct("iII")  # ucred: pid, uid, gid.


class Supervisor:
    """One process that looks after another, until it is told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        patience: Patience | None = None,
        before_start: Callable[[], str] = str,
    ) -> None:
        """
        Args:
            command: The agent's; it is looked up anew at each start, so a link that was moved counts.
            folder: For the pid file and the log; made where it is missing, for its owner alone.
            before_start: Asked before each start; what it returns is noted in the log.
        """
        self._command = tuple(command)
        self._folder = folder
        self._patience = patience or Patience()
        self._before_start = before_start
        self._watch = Watch()
        self._agent: subprocess.Popen[bytes] | None = None
        self._orders: list[Heard] = []

    def run(self) -> None:
        """Look after the agent until SIGTERM.

        Raises:
            AgentRunning: another supervisor has the folder.
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _pid_file(self._folder / PID_FILE), _listening() as (heard_from, address), _woken() as wakes:
            for number in (*_ORDERS, signal.SIGCHLD):
                signal.signal(number, self._on_signal)
            try:
                while self._watch.phase is not Phase.OVER:
                    self._turn(heard_from, address, wakes)
            finally:
                if self._agent is not None and self._agent.poll() is None:
                    self._agent.kill()
                    self._agent.wait()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _ORDERS:  # SIGCHLD only wakes the loop.
            self._orders.append(_ORDERS[signal.Signals(number)])

    def _turn(self, heard_from: socket.socket, address: str, wakes: socket.socket) -> None:
        select.select([heard_from, wakes], [], [], LOOK_S)
        with suppress(BlockingIOError):
            wakes.recv(_DATAGRAM_BYTES)
        while self._orders:
            self._hear(self._orders.pop(0), address)
        for heard in self._said(heard_from):
            self._hear(heard, address)
        if self._agent is not None and self._agent.poll() is not None:
            self._note(f"the agent ended with {self._agent.returncode}")
            self._agent = None
            self._hear(Heard.ENDED, address)
        self._hear(Heard.TIME, address)
        _bound(self._folder / LOG_FILE, LOG_BYTES_MAX)

    def _hear(self, heard: Heard, address: str) -> None:
        self._watch, order = advance(self._watch, heard, time.monotonic(), self._patience)
        if order is Order.START:
            self._start(address)
        elif order is not None and self._agent is not None:
            self._note(f"{order.value}: {heard.value}, {self._watch.failures} early ends before")
            self._agent.send_signal(signal.SIGKILL if order is Order.KILL else signal.SIGTERM)

    def _start(self, address: str) -> None:
        if said := self._before_start():
            self._note(said)
        micros = str(int(self._patience.watchdog_s * 1e6))
        environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": micros}
        environment.pop("WATCHDOG_PID", None)
        with _log(self._folder / LOG_FILE) as log:
            try:
                self._agent = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    preexec_fn=_end_with_us,  # This process has one thread.
                )
            except OSError as error:
                self._note(f"{self._command[0]} does not start: {error.strerror}")
                self._watch, _ = advance(self._watch, Heard.ENDED, time.monotonic(), self._patience)

    def _said(self, heard_from: socket.socket) -> Iterator[Heard]:
        """Yield what the agent itself said; anybody may write to the socket, and the kernel tells who did."""
        while True:
            try:
                content, ancillary, _, _ = heard_from.recvmsg(_DATAGRAM_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            pids = {
                _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
                for level, kind, data in ancillary
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
            }
            if self._agent is None or self._agent.pid not in pids:
                continue
            lines = content.split(b"\n")
            if b"READY=1" in lines:
                yield Heard.READY
            if b"WATCHDOG=1" in lines:
                yield Heard.ALIVE

    def _note(self, text: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with suppress(OSError), _log(self._folder / LOG_FILE) as log:
            os.write(log, f"{now} supervisor: {text}\n".encode())


def running_pid(folder: Path) -> int | None:
    """Return the process id of the supervisor that has `folder`; None: there is none."""
    try:
        descriptor = os.open(folder / PID_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def detach(command: Sequence[str]) -> int:
    """Start `command` as a process that outlives this one and its terminal; return its id. Raises OSError."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ).pid


@contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    """Hold the file, with our process id in it as long as we run."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _hold(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _hold(descriptor: int, path: Path) -> None:
    """Lock the file. Who only asks whether we run holds it for an instant, so one refusal says nothing."""
    until = time.monotonic() + HOLD_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > until:
                raise AgentRunning(f"another supervisor works in {path.parent}") from error
            time.sleep(HOLD_S / 50)
        else:
            return


@contextmanager
def _listening() -> Iterator[tuple[socket.socket, str]]:
    """Yield a socket for sd_notify and its address as the environment tells it; an abstract one leaves no file."""
    name = f"muster-agent/{os.getpid()}/{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listening.bind(f"\0{name}")
        yield listening, f"@{name}"


@contextmanager
def _woken() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable with every signal."""
    ours, kernels = socket.socketpair()
    with ours, kernels:
        ours.setblocking(False)
        kernels.setblocking(False)
        before = signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def _log(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _bound(path: Path, bytes_max: int) -> None:
    """Copy the log away once it is long, and go on from the start: the agent appends, so it may keep it open."""
    with suppress(OSError):
        if path.stat().st_size <= bytes_max:
            return
        before = path.with_name(f"{path.name}.1")
        before.unlink(missing_ok=True)
        with _log(before) as copy, path.open("rb") as file:
            while block := file.read(1024 * 1024):
                os.write(copy, block)
        os.truncate(path, 0)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_us() -> None:
    """Let the kernel end the agent when its supervisor was killed: nobody would look after it."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
