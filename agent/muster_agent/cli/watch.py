"""`muster-agent top`: ask twice, show the difference, again and again. What is shown is `top`'s."""

import argparse
import json
import os
import re
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from muster_agent import top
from muster_agent.cli.asking import AgentAway, ask, ask_raw, endpoint_of, token

ONCE_S_MIN = 0.1
_HOME, _CLEAR_BELOW, _ALTERNATE, _BACK = "\x1b[H", "\x1b[J", "\x1b[?1049h\x1b[?25l", "\x1b[?1049l\x1b[?25h"
_CLEAR_LINE = "\x1b[K"


def watch(options: argparse.Namespace) -> None:
    endpoint = endpoint_of(options)
    process = _process(endpoint)
    interval_s = max(ONCE_S_MIN, options.interval)
    before = _read(endpoint, process)
    live = sys.stdout.isatty() and not options.once and not options.json
    with _screen(live) as keys:
        held = False
        while True:
            key = keys.wait(interval_s)
            if key == "q":
                return
            if key == " ":
                held = not held
            if held:
                continue
            try:
                now = _read(endpoint, process)
            except AgentAway as error:
                if not live:
                    raise
                _draw([str(error)])
                process = _process(endpoint)
                continue
            found = top.view(before, now)
            before = now
            if options.json:
                print(json.dumps(msgspec.to_builtins(found)), flush=True)
            elif live:
                size = shutil.get_terminal_size((top.WIDTH, 24))
                _draw(top.lines(found, width=size.columns, colour=_coloured())[: size.lines - 1])
            else:
                print("\n".join(top.lines(found, colour=_coloured())), flush=True)
            if options.once:
                return


def _read(endpoint: str, process: Any) -> top.Reading:
    status = ask(endpoint, "GET", "/v1/status", token=token())
    page = ask_raw(endpoint, "GET", "/metrics", token=token()).decode()
    used: top.Process | None = None
    if process is not None:
        with suppress(Exception), process.oneshot():  # psutil's own tree: it may be gone, or another user's.
            cpu = process.cpu_times()
            used = top.Process(cpu.user + cpu.system, process.memory_info().rss)
    return top.Reading(time.monotonic(), status, top.parse(page), used)


def _process(endpoint: str) -> Any:
    """Return the agent's process as psutil has it, or None where it cannot be found."""
    import socket
    import struct

    import psutil

    try:
        if endpoint.startswith("unix:"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(5.0)
                probe.connect(endpoint.removeprefix("unix:"))
                raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return psutil.Process(struct.unpack("3i", raw)[0])
        port = re.search(r":(\d+)", endpoint.removeprefix("http://"))
        if port is not None:
            for found in psutil.net_connections("tcp"):
                if found.status == psutil.CONN_LISTEN and found.laddr[1:] == (int(port[1]),) and found.pid:
                    return psutil.Process(found.pid)
    except (OSError, psutil.Error):
        pass
    return None


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _draw(picture: list[str]) -> None:
    lines = "".join(f"{line}{_CLEAR_LINE}\r\n" for line in picture)
    sys.stdout.write(f"{_HOME}{lines}{_CLEAR_BELOW}")
    sys.stdout.flush()


class _Keys:
    """What is pressed."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str:
        """Return the key that is pressed within `seconds`, else an empty text."""
        if self._descriptor is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return ""
        return os.read(self._descriptor, 1).decode(errors="replace")


@contextmanager
def _screen(live: bool) -> Iterator[_Keys]:
    """Take the whole terminal, and give it back as it was."""
    if not live:
        yield _Keys(None)
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None
    kept = None if descriptor is None else termios.tcgetattr(descriptor)
    sys.stdout.write(_ALTERNATE)
    try:
        if descriptor is not None:
            tty.setcbreak(descriptor)
        yield _Keys(descriptor)
    finally:
        if descriptor is not None and kept is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, kept)
        sys.stdout.write(_BACK)
        sys.stdout.flush()
