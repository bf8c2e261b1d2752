"""Approval gates: which one a rollout waits for, and whose word counts. Pure.

A named approver counts by name. Where nobody is named, it takes a second person: whoever created the rollout does not
count.
"""

from collections.abc import Iterator

from muster_controller.core.policy import Approval
from muster_controller.core.rollout.state import Rollout

AT_THE_END = "the end waits"


def awaited(rollout: Rollout, *, is_finish: bool = False) -> tuple[Approval, str] | None:
    """Return the approval that the next wave (or the end) waits for, with a sentence; None when there is none."""
    return next(all_awaited(rollout, is_finish=is_finish), None)


def all_awaited(rollout: Rollout, *, is_finish: bool = False) -> Iterator[tuple[Approval, str]]:
    """Return every approval that the next wave (or the end) waits for, each with a sentence."""
    if rollout.at_once:
        return
    before = "finish" if is_finish and rollout.wave >= 0 else str(rollout.wave + 2)
    for approval in rollout.policy.approvals:
        if str(approval.before) not in ("every", before):
            continue
        given = (each.by for each in rollout.approvals if each.before == before)
        names = {name for name in given if may_approve(rollout, approval, name)}
        if len(names) < approval.count:
            who = ", ".join(approval.by) if approval.by else f"anyone but {rollout.created_by}"
            what = AT_THE_END if before == "finish" else f"wave {before} waits"
            yield approval, f"{what} for approval by {who}: {len(names)} of {approval.count}"


def may_approve(rollout: Rollout, approval: Approval, actor: str) -> bool:
    """Return whether `actor` counts: one of those named, or, where nobody is named, a second person."""
    return actor in approval.by if approval.by else actor != rollout.created_by
