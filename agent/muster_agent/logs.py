"""Logs as JSON lines on stderr: an event name and fields. What libraries say through `logging` comes along.

The last of them stay in memory (`calls.ring`), for whoever asks the device from afar.
"""

import logging
import sys

import msgspec
import structlog

from muster_agent.calls.ring import RING

_encode = msgspec.json.Encoder(enc_hook=str).encode


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method(record.getMessage(), logger=record.name, exc_info=record.exc_info)


def configure_logs(level: int) -> None:
    """Send everything from `level` (of `logging`) to stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=max(level, logging.WARNING), force=True)


def _render(_logger: object, _method: str, event: structlog.typing.EventDict) -> bytes:
    line = _encode({"event": event.pop("event"), **event})
    RING.keep(line)
    return line
