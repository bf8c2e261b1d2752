"""Runs the operator's own program and takes its answer: an exit code and one line of reason.

    0 go on        75 (EX_TEMPFAIL) or 21 (as Mender's state scripts) later        anything else: later too, and a fault

Whatever goes wrong is "later": a broken hook holds a rollout up visibly, rather than let it through. The program gets
no shell, no input, its own process group, and `timeout_s`; of what it prints, REASON_BYTES_MAX are looked at.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

LATER = (75, 21)
REASON_BYTES_MAX = 1024
REASON_MAX = 160
_LOOK_S = 0.05


@dataclass(frozen=True)
class HookAnswer:
    """`fault`: it said neither yes nor later in a way that it may."""

    go_on: bool
    reason: str
    fault: bool = False


def run_hook(command: Sequence[str], timeout_s: float) -> HookAnswer:
    """Return what the program says. It blocks for `timeout_s` at most, and leaves no process of its group behind."""
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return HookAnswer(False, f"the consent hook cannot be run: {_why(error)}", fault=True)
    assert process.stdout is not None
    try:
        said, ended = _listen(process, process.stdout, time.monotonic() + timeout_s)
    finally:
        # The group is still ours: its leader is not waited for yet, so its number cannot be another's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
    if not ended:
        return HookAnswer(False, f"the consent hook did not end in {timeout_s:g} s", fault=True)
    if process.returncode == 0:
        return HookAnswer(True, said)
    if process.returncode in LATER:
        return HookAnswer(False, said or "the consent hook says later")
    how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
    return HookAnswer(False, f"the consent hook failed with {how}", fault=True)


def _listen(process: "subprocess.Popen[bytes]", output: IO[bytes], deadline: float) -> tuple[str, bool]:
    """Return the first line, and whether the program ended by itself. What it leaves running may hold its output."""
    heard = bytearray()
    with selectors.DefaultSelector() as selector:
        os.set_blocking(output.fileno(), False)
        selector.register(output, selectors.EVENT_READ)
        open_ = True
        while True:
            ended = _has_ended(process)
            if open_ and selector.select(0.0 if ended else _LOOK_S):
                piece = os.read(output.fileno(), REASON_BYTES_MAX)
                heard += piece[: max(0, REASON_BYTES_MAX - len(heard))]
                if piece:
                    if time.monotonic() >= deadline:
                        return "", False
                    continue
                open_ = False
                selector.unregister(output)
            if ended:
                return _first_line(bytes(heard)), True
            if time.monotonic() >= deadline:
                return "", False
            if not open_:
                time.sleep(_LOOK_S)


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has, without taking its exit code: until that is taken, its number stays its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _first_line(raw: bytes) -> str:
    text = raw.decode("utf-8", errors="replace").strip()
    line = text.splitlines()[0] if text else ""
    return "".join(letter for letter in line if letter.isprintable())[:REASON_MAX].strip()


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
