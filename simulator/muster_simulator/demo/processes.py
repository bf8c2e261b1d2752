"""The demo's processes: started in sessions of their own, logged to files, supervised, stopped in reverse order.

What runs is written to `pids.json` with the time at which each process began, so that the next demo can end what a
killed one left behind, and nothing else.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from muster_shared.errors import MusterError

STOP_TIMEOUT_S = 8.0
POLL_S = 0.05
BEGAN_TOLERANCE_S = 2.0  # The clock may have been set meanwhile; a number is not used again so soon.
LOG_TAIL_LINES = 3


class ProcessFailed(MusterError):
    """A process of the demo cannot be run, or ended by itself. Read its log."""

    def __init__(self, name: str, status: int | None, log: Path) -> None:
        ended = "cannot be run" if status is None else f"ended with status {status}"
        super().__init__(f"{name} {ended}; read {log}{_tail(log)}")
        self.name = name
        self.status = status
        self.log = log


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        restart_s: it is started again so long after it ended by itself, as systemd would.
        is_task: it is meant to end.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    restart_s: float | None = None
    is_task: bool = False


class _Recorded(msgspec.Struct, frozen=True):
    name: str
    pid: int
    began_at: float


class Child:
    """One program, running or to be run again."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.ended_at: float | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "it was never started"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Raises ProcessFailed when the program cannot be run."""
        program = self.program
        program.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with program.log.open("ab") as log:
                self.process = subprocess.Popen(
                    program.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **program.environment},
                    start_new_session=True,  # Ctrl-C is for us; we end them in our own order.
                )
        except OSError as error:
            raise ProcessFailed(program.name, None, program.log) from error
        self.ended_at = None


class Crew:
    """All processes of one demo. Its methods are called from one thread; another one supervises."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self, program: Program) -> Child:
        """Run `program`. Raises ProcessFailed."""
        child = Child(program)
        with self._lock:
            child.start()
            self._children[program.name] = child
            self._record()
        if not self._supervisor.is_alive():
            self._supervisor.start()
        return child

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def kill(self, name: str) -> None:
        """End a process as a crash would; it comes back if it is to be restarted."""
        process = self._children[name].process
        if process is not None:
            process.kill()

    def require(self) -> None:
        """Raise ProcessFailed if a process that is not restarted has ended, other than a task that is done."""
        with self._lock:
            for child in self._children.values():
                program, status = child.program, None if child.process is None else child.process.poll()
                if status is not None and program.restart_s is None and not (program.is_task and status == 0):
                    raise ProcessFailed(program.name, status, program.log)

    def finish(self, name: str, timeout_s: float) -> None:
        """Wait until a process has done its work. Raises ProcessFailed when it fails or takes longer."""
        child = self._children[name]
        assert child.process is not None
        try:
            status: int | None = child.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        if status != 0:
            raise ProcessFailed(name, status, child.program.log)

    def stop(self, first: Callable[[str], bool] = lambda _: False) -> None:
        """End everything gently, those that are `first` before the others, and by force what does not end."""
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join(STOP_TIMEOUT_S)
        with self._lock:
            early = [child for child in self._children.values() if first(child.program.name)]
            late = [child for child in self._children.values() if not first(child.program.name)]
            for group in (early, late):
                _end([child.process for child in group if child.process is not None])
            self._pid_file.unlink(missing_ok=True)

    def _supervise(self) -> None:
        while not self._stopping.wait(POLL_S):
            with self._lock:
                for child in self._children.values():
                    self._look_after(child)

    def _look_after(self, child: Child) -> None:
        if child.program.restart_s is None or child.is_running:
            return
        if child.ended_at is None:
            child.ended_at = time.monotonic()
        elif time.monotonic() >= child.ended_at + child.program.restart_s:
            with suppress(ProcessFailed):  # It is tried again.
                child.start()
                child.restarts += 1
                self._record()

    def _record(self) -> None:
        recorded = [
            _Recorded(child.program.name, child.pid, began_at)
            for child in self._children.values()
            if (began_at := _began_at(child.pid)) is not None
        ]
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._pid_file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(recorded))
        temporary.replace(self._pid_file)


def end_leftovers(pid_file: Path) -> list[str]:
    """End the processes of an earlier demo that are still there; return their names."""
    try:
        recorded = msgspec.json.decode(pid_file.read_bytes(), type=list[_Recorded])
    except (OSError, msgspec.MsgspecError):
        return []
    left = [each for each in recorded if _is_still(each)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for each in left:
            if _is_still(each):
                _signal_group(each.pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(map(_is_still, left)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    pid_file.unlink(missing_ok=True)
    return [each.name for each in left]


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process and its children: each of ours leads a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _began_at(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_still(recorded: _Recorded) -> bool:
    """Whether the very process is still there: the kernel uses its numbers again."""
    try:
        process = psutil.Process(recorded.pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - recorded.began_at) < BEGAN_TOLERANCE_S
    except psutil.Error:
        return False


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return ""
    return "".join(f"\n    {line[:400]}" for line in lines)
