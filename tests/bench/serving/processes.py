"""A server in a process of its own: started, awaited, weighed and stopped, by the ids of what we started.

Memory and CPU are those of the whole tree: some servers answer with several processes.
"""

import http.client
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from bench.serving.models import Subject
from bench.serving.wire import Ask, Form, check

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.005


class ServerFailed(Exception):
    """It did not come up, or ended; the message has the end of its log."""


class Server:
    """A running process with everything that it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self._log = log
        self.began = time.perf_counter()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
            )
        self._root = psutil.Process(self.process.pid)

    def wait_answer(self, asked: Ask, subject: Subject, form: Form) -> float:
        """Return the seconds from exec to the first right answer.

        Raises:
            ServerFailed: the process ended, or did not answer 200 in time.
            AnswerWrong: it answered something else than the model does.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        last = "nothing"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(f"{self.name} ended with {self.process.returncode}: {self.log_end()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("POST", asked.path, asked.body, dict(asked.headers))
                response = connection.getresponse()
                body = response.read()
                took_s = time.perf_counter() - self.began
            except (OSError, http.client.HTTPException) as error:
                last = repr(error)
            else:
                if response.status == 200:
                    check(subject, form, {name.lower(): value for name, value in response.getheaders()}, body)
                    return took_s
                last = f"{response.status} {body[:200]!r}"
            finally:
                connection.close()
            time.sleep(POLL_S)
        raise ServerFailed(f"{self.name} did not answer in {READY_TIMEOUT_S:g} s ({last}): {self.log_end()}")

    def tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def rss_mb(self) -> float:
        return sum(_rss(process) for process in self.tree()) / 2**20

    def cpu_s(self) -> float:
        return sum(_cpu_s(process) for process in self.tree())

    def log_end(self) -> str:
        return self._log.read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        """Ask the process to end, and end what is left of its tree."""
        tree = self.tree()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
        left = [process for process in tree[1:] if process.is_running()]  # psutil holds ids to their start times.
        _, alive = psutil.wait_procs(left, timeout=3)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5)


class PeakMemory:
    """The largest resident memory within a `with`, looked at four times a second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.mb = 0.0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)
        self.mb = max(self.mb, self._server.rss_mb())

    def _look(self) -> None:
        while not self._over.wait(0.25):
            self.mb = max(self.mb, self._server.rss_mb())


def _rss(process: psutil.Process) -> int:
    try:
        rss: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return rss


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
