"""Who acts, for what reason, and in which request: carried from the edge to the audit log. It checks nobody."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

REASON_MAX = 500


@dataclass(frozen=True)
class Acting:
    """`actor` is a principal's name, `device:<id>`, or `controller` for what it decides by itself."""

    actor: str = "controller"
    request_id: str = ""
    reason: str = ""


CONTROLLER = Acting()
_acting: ContextVar[Acting] = ContextVar("acting", default=CONTROLLER)


def acting() -> Acting:
    """Return who acts here. Threads and tasks have what they were started with."""
    return _acting.get()


@contextmanager
def act_as(who: Acting) -> Iterator[None]:
    """Everything inside is done by `who`."""
    token = _acting.set(who)
    try:
        yield
    finally:
        _acting.reset(token)


@contextmanager
def done_by(actor: str, reason: str = "") -> Iterator[None]:
    """Everything inside is done by `actor`, in the request that this is part of."""
    here = acting()
    with act_as(replace(here, actor=actor, reason=reason or here.reason)):
        yield
