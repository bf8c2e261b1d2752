"""The audit log as a page: who changed what and why, newest first, and whether the whole of it holds."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.audit import list_audit, verify_audit
from muster_controller.api.services import Given
from muster_controller.operators.roles import Permission
from muster_controller.web.frame import pages, render

LINES_SHOWN = 100
ACTIONS = ("rollout.", "release.", "trust.", "device.", "identity.", "operator.", "credential.", "alert.", "mixer.")
"""Beginnings of what the log knows, offered as completions."""

router = pages(Permission.ADMINISTER)


@router.get("/audit")
def audit_page(
    request: Request,
    given: Given,
    actor: Annotated[str, Query(max_length=256)] = "",
    action: Annotated[str, Query(max_length=256)] = "",
    subject: Annotated[str, Query(max_length=256)] = "",
    request_id: Annotated[str, Query(max_length=256)] = "",
    day: Annotated[str, Query(max_length=10)] = "",
    check: bool = False,
    cursor: Annotated[str | None, Query(pattern="^[0-9]{1,15}$", max_length=15)] = None,
) -> HTMLResponse:
    until = _end_of(day)
    found = list_audit(
        given,
        actor=actor or None,
        subject=subject or None,
        action=action or None,
        request_id=request_id or None,
        until=until,
        limit=LINES_SHOWN,
        cursor=cursor,
    )
    return render(
        request,
        "audit.html",
        now=given.clock(),
        lines=found.lines,
        next_cursor=found.next,
        filters={"actor": actor, "action": action, "subject": subject, "request_id": request_id, "day": day},
        is_bad_day=bool(day) and until is None,
        actions=ACTIONS,
        head=given.audit.head(),
        report=verify_audit(given) if check else None,
    )


def _end_of(day: str) -> float | None:
    """Return the end of a day as Unix seconds, UTC; None: it is none."""
    try:
        return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + 86_400.0 if day else None
    except (ValueError, OverflowError):
        return None
