"""Routes: the audit log, newest first; its head; whether it holds; and all of it as a file. Reads only."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from muster_controller.api.authentication import require
from muster_controller.api.schemas.audit import AuditBreak, AuditLineView, AuditPage, AuditReport, CheckpointView
from muster_controller.api.services import Given
from muster_controller.audit.chain import Anchor, Report, Stored
from muster_controller.audit.checkpoint import Checkpoint
from muster_controller.audit.export import MEDIA_TYPE
from muster_controller.operators.roles import Permission
from muster_shared.errors import WireError

ORDINAL_MAX = 2**53  # What a program that reads JSON takes for a whole number.

router = APIRouter(prefix="/audit", tags=["audit"])

Name = Annotated[str | None, Query(max_length=256)]
Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds.")]


@router.get("", dependencies=[require(Permission.ADMINISTER)])
def list_audit(
    given: Given,
    actor: Name = None,
    subject: Name = None,
    action: Annotated[
        str | None, Query(max_length=256, description="All of it, or with a dot at its end the beginning: `rollout.`")
    ] = None,
    request_id: Name = None,
    since: Moment = None,
    until: Moment = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
    cursor: Annotated[
        str | None, Query(pattern="^[0-9]{1,15}$", max_length=15, description="`next` of the page before.")
    ] = None,
) -> AuditPage:
    """Who changed what, and why; newest first."""
    found = given.audit.reader.lines(
        actor=actor,
        subject=subject,
        action=action,
        request_id=request_id,
        since=since,
        until=until,
        before=None if cursor is None else int(cursor),
        limit=limit,
    )
    views = [_line(stored) for stored in found]
    return AuditPage(lines=views, next=str(views[-1].ordinal) if len(views) == limit else None)


@router.get("/head", dependencies=[require(Permission.VIEW)])
def show_audit_head(given: Given) -> CheckpointView:
    """The newest line's number and hash, signed. A log that does not extend it later is not the log that was."""
    return _checkpoint(given.audit.head())


@router.get("/verify", dependencies=[require(Permission.ADMINISTER)])
def verify_audit(
    given: Given,
    ordinal: Annotated[int | None, Query(ge=0, le=ORDINAL_MAX, description="Of a line that was seen before.")] = None,
    seen: Annotated[str | None, Query(alias="hash", max_length=64, description="The hash that it had.")] = None,
) -> AuditReport:
    """Check every line against the one before it, and where it does not hold say where. It reads the whole log.

    Whoever does not trust this controller exports the log and checks it elsewhere: `muster audit verify` does.
    """
    if (ordinal is None) != (seen is None):
        raise WireError("a checkpoint has an `ordinal` and a `hash`; give both, or neither")
    witnessed = [] if ordinal is None or seen is None else [Anchor(ordinal, seen)]
    return _report(given.audit.verify(witnessed))


@router.get(
    "/export",
    dependencies=[require(Permission.ADMINISTER)],
    response_class=StreamingResponse,
    responses={200: {"description": "JSON Lines; the last is a signed checkpoint.", "content": {MEDIA_TYPE: {}}}},
)
def export_audit(
    given: Given,
    after: Annotated[int, Query(ge=0, le=ORDINAL_MAX, description="Only the lines behind this one.")] = 0,
) -> StreamingResponse:
    """The whole log as a file, oldest first, each line as its hash covers it."""
    headers = {"Cache-Control": "no-store", "Content-Disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(given.audit.export(after), media_type=MEDIA_TYPE, headers=headers)


@router.get("/{ordinal}", dependencies=[require(Permission.ADMINISTER)])
def show_audit_line(given: Given, ordinal: int) -> AuditLineView:
    """One line."""
    if not 0 < ordinal <= ORDINAL_MAX:
        raise WireError("lines of the audit log are numbered from 1")
    return _line(given.audit.line(ordinal))


def _line(stored: Stored) -> AuditLineView:
    return AuditLineView(
        ordinal=stored.ordinal,
        at=stored.at,
        actor=stored.actor,
        action=stored.action,
        subject=stored.subject,
        detail=stored.detail,
        reason=stored.reason,
        request_id=stored.request_id,
        hash=stored.hash,
    )


def _checkpoint(found: Checkpoint) -> CheckpointView:
    return CheckpointView(
        fleet=found.fleet,
        ordinal=found.ordinal,
        hash=found.hash,
        at=found.at,
        key=found.key,
        signature=found.signature,
    )


def _report(found: Report) -> AuditReport:
    return AuditReport(
        holds=found.holds,
        lines=found.lines,
        head=found.head.ordinal,
        hash=found.head.hash,
        breaks=[
            AuditBreak(ordinal=each.ordinal, last=each.last, flaw=each.flaw.value, said=each.said)
            for each in found.breaks
        ],
        count=found.count,
    )
