"""Which of the fleet's notes are changes that belong into the audit log, and what they are called there. Pure.

In it: what a person ordered, and what the controller decided. Not in it: what a device can bring about by itself, as
often as it likes, because then a device could fill the log; the notes, the events and the assignments keep that, for
as long as history is kept. A rollout may pause or end because of what devices report, and that is in it: it happens
once, and goes on only when a person says so.
"""

from dataclasses import dataclass

from muster_controller.acting import Acting, acting
from muster_controller.ports import Note

DEVICE_DRIVEN = frozenset(
    {
        "fault_seen",  # A report.
        "assignment_refused",  # A report.
        "device_left_rollout",  # It reports other labels, ...
        "device_joined_rollout",
        "device_follows_baseline",  # ... and each time it does, it is told to run what its group runs.
        "counter_counted_on",  # It reports a counter beyond ours.
        "counter_out_of_reach",
    }
)
WRITTEN_ALREADY = frozenset(
    # By `db.hold_store`,
    {"device_pinned", "device_quarantined", "device_released", "device_decommissioned"}
    # and by `db.identity_store`.
    | {"identity_revoked", "identity_forgotten"}
)


@dataclass(frozen=True)
class Entry:
    """One change that is to be written down."""

    who: Acting
    action: str
    subject: str
    detail: str
    at: float


def is_audited(note: Note) -> bool:
    """Return whether `note` tells of a change. What nobody has thought of yet does."""
    return note.what not in DEVICE_DRIVEN and note.what not in WRITTEN_ALREADY


def action_of(what: str) -> str:
    """Return what a note is called in the audit log: `rollout_pause` is `rollout.pause`."""
    return what.replace("_", ".", 1)


def entry(note: Note) -> Entry:
    """Return what is to be written: the note's actor did it, for the reason and in the request of whoever runs this."""
    here = acting()
    who = Acting(note.actor, here.request_id, here.reason)
    return Entry(who, action_of(note.what), note.subject, note.detail, note.at)
