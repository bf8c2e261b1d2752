"""The end of a device's log, ready to be read: a line is when, how bad, what happened, and the rest by name.

Pure. Agents write a JSON object a line; what is none, such as the text of a library, is shown as it came.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

_TONE_OF = {"critical": "bad", "error": "bad", "warning": "hold"}


@dataclass(frozen=True)
class LogLine:
    """`at`: Unix seconds, None where the line does not say; `level` and `tone` are empty where it has none to show."""

    event: str
    at: float | None = None
    level: str = ""
    tone: str = ""
    fields: tuple[tuple[str, str], ...] = ()


def log_lines(lines: Sequence[str]) -> list[LogLine]:
    """Return what each line says, in order. Total: whatever a device sends is a line."""
    return [_line(each) for each in lines]


def _line(text: str) -> LogLine:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: no UTF-8, or a number too long.
        return LogLine(text)
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return LogLine(text)
    level = found.get("level")
    level = level if isinstance(level, str) else ""
    return LogLine(
        event=found["event"].replace("_", " "),
        at=_moment(found.get("timestamp")),
        level=level,
        tone=_TONE_OF.get(level, ""),
        fields=tuple(
            (str(name), _said(value))
            for name, value in found.items()
            if name not in ("event", "level", "timestamp") or (name == "timestamp" and _moment(value) is None)
        ),
    )


def _moment(said: object) -> float | None:
    try:
        at = datetime.fromisoformat(said) if isinstance(said, str) else None
        return None if at is None else at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _said(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return ", ".join(map(str, value))
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        return "…"
