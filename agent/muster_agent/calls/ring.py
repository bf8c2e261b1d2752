"""The end of the agent's log, in memory: so many lines, each cut, without what must not leave a device.

Lines are kept as they were rendered, and made fit to leave only when somebody asks: the log itself is not slowed down.
No input of a model is ever logged; folders of the device and tracebacks are, and are taken out here.
"""

import re
import threading
from collections import deque
from typing import Final

LINES_KEPT: Final = 500
LINE_CHARACTERS_MAX: Final = 1000
ANSWER_BYTES: Final = 32 * 1024

_TRACEBACK = re.compile(r'"exception":"(?:[^"\\]|\\.)*(?:"|$)')
_PATH = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[\w.+@~-]+/)*[\w.+@~-]+/?")
_URL_USER = re.compile(r"(?<=://)[^/\s\"@]+@")


class Ring:
    """Safe from any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._lines: deque[bytes] = deque(maxlen=LINES_KEPT)

    def keep(self, line: bytes) -> None:
        with self._mutex:
            self._lines.append(line[: LINE_CHARACTERS_MAX * 4])

    def last(self, lines: int) -> tuple[str, ...]:
        """Return the last `lines` lines, fit to leave the device, oldest first; fewer where they are too long."""
        with self._mutex:
            kept = list(self._lines)[-lines:] if lines > 0 else []
        found: list[str] = []
        size = 0
        for raw in reversed(kept):
            line = fit_to_leave(raw.decode("utf-8", "replace"))
            size += len(line.encode()) + 1
            if size > ANSWER_BYTES:
                break
            found.append(line)
        return tuple(reversed(found))


def fit_to_leave(line: str) -> str:
    """Return a line of the log without tracebacks, paths of the device and users in URLs, cut to its limit."""
    line = _TRACEBACK.sub('"exception":"(kept on the device)"', line)
    line = _URL_USER.sub("", line)
    line = _PATH.sub("(path)", line)
    return line if len(line) <= LINE_CHARACTERS_MAX else f"{line[: LINE_CHARACTERS_MAX - 1]}…"


RING: Final = Ring()
"""Of this process: there is one log. `logs.configure_logs` fills it."""
