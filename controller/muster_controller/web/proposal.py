"""A rollout that somebody is about to begin, ready to show: document, problems, plan, and the rehearsal. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from muster_controller.api.schemas import Plan
from muster_controller.core.policy import Policy, PolicyInvalid
from muster_controller.core.rollout.words import devices
from muster_controller.policy_document import dump, parse_policy
from muster_controller.rehearsing import Outcome, Rehearsal
from muster_controller.web import policy_form
from muster_controller.web.present import span

CLASSES_SAID = 6
NAME = "policy"
"""What messages call the document."""


@dataclass(frozen=True)
class Problem:
    """Why a document is refused; `line` from 1, where one is to blame."""

    message: str
    field: str | None
    line: int | None


@dataclass(frozen=True)
class Draft:
    """A document as it stands, and the form beside it."""

    document: str
    policy: Policy | None
    """None: it is refused."""
    problem: Problem | None
    groups: tuple[policy_form.Group, ...]
    is_by_hand: bool
    """Whether the document was written by hand and cannot be read: then the form is set aside."""

    @property
    def mark(self) -> str:
        """What tells later whether the document was changed by hand; empty: it was, and the form does not count."""
        return "" if self.is_by_hand else marked(self.document)


@dataclass(frozen=True)
class OutcomeRow:
    """One scenario of the rehearsal in words, and whether that is well."""

    title: str
    is_harmless: bool
    stopped: str
    exposed: str
    harmed: str
    time: str
    is_well: bool


def marked(document: str) -> str:
    """Return a short mark of a document, however a browser writes its ends of lines."""
    text = "\n".join(line.rstrip() for line in document.splitlines()).strip()
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def draft(asked: Mapping[str, str]) -> Draft:
    """Return what the person means: the document where it was changed since it was shown, else the form.

    Args:
        asked: The fields of `policy_form` by name, `document` as it stands in the page and `shown`, its mark when it
            was put there.
    """
    document = asked.get("document", "")
    if document.strip() and asked.get("shown", "") != marked(document):
        return from_document(document)
    text = policy_form.document_of(asked)
    try:
        policy = parse_policy(text, NAME)
    except PolicyInvalid as error:
        return Draft(text, None, _problem(error), policy_form.filled(asked), is_by_hand=False)
    return Draft(dump(policy), policy, None, policy_form.groups(policy), is_by_hand=False)


def from_document(document: str) -> Draft:
    """Return the draft of a document as somebody wrote it; comments and all stay."""
    try:
        policy = parse_policy(document, NAME)
    except PolicyInvalid as error:
        return Draft(document, None, _problem(error), policy_form.groups(Policy()), is_by_hand=True)
    return Draft(document, policy, None, policy_form.groups(policy), is_by_hand=False)


def _problem(error: PolicyInvalid) -> Problem:
    return Problem(str(error), error.field, error.line)


# -- the plan ------------------------------------------------------------------------------------------------------


def counted(classes: Mapping[str, int]) -> str:
    """Return "3 pi5 and 2 nuc", the commonest first, the rest together."""
    found = sorted(classes.items(), key=lambda each: (-each[1], each[0]))
    said = [f"{count:,} {name}" for name, count in found[:CLASSES_SAID] if count]
    rest = sum(count for _, count in found[CLASSES_SAID:])
    said += [f"{rest:,} of other classes"] if rest else []
    return " and ".join(filter(None, (", ".join(said[:-1]), said[-1]))) if said else "none"


def consequence(plan: Plan) -> str:
    """Return what pressing start will do to how many devices of which kinds."""
    first = sum(plan.first_wave.values())
    waves = f" in {len(plan.waves)} waves of {', '.join(f'{each:,}' for each in plan.waves)}" if plan.waves[1:] else ""
    begins = (
        f"{devices(first).capitalize()} get it first: {counted(plan.first_wave)}."
        if first
        else ("The first wave begins when one of its devices is online.")
    )
    return f"{begins} In all {devices(plan.devices)}{waves}: {counted(plan.classes)}."


def offline_share(plan: Plan) -> float:
    return 1 - plan.online / plan.devices if plan.devices else 0.0


# -- the rehearsal -------------------------------------------------------------------------------------------------


def outcome_rows(rehearsal: Rehearsal) -> tuple[OutcomeRow, ...]:
    return tuple(_row(each) for each in rehearsal.outcomes)


def _row(found: Outcome) -> OutcomeRow:
    stopped = found.aborted.runs + found.paused.runs
    took = found.to_finish_s if found.is_harmless else found.to_stop_s
    is_well = stopped <= found.runs * 0.2 if found.is_harmless else stopped >= found.runs * 0.8
    return OutcomeRow(
        title=found.title,
        is_harmless=found.is_harmless,
        stopped=f"{stopped} of {found.runs}",
        exposed=f"{found.exposed.median:,.0f} / {found.exposed.p90:,.0f}",
        harmed=f"{found.harmed.median:,.0f} / {found.harmed.p90:,.0f}",
        time="–" if took is None else f"{span(took.median)} / {span(took.p90)}",
        is_well=is_well,
    )


def address(model: str, version: str, found: Draft) -> str:
    """Return the query of a page that shows the same draft."""
    said = {"model": model, "version": version, "document": "" if found.document.strip() == "{}" else found.document}
    return urlencode({key: value for key, value in said.items() if value})


def again(query: Mapping[str, Any]) -> dict[str, str]:
    """Return what of a query fills in the form: known names alone, bounded."""
    return {
        key: str(value)[: policy_form.DOCUMENT_MAX if key == "document" else policy_form.VALUE_MAX]
        for key, value in query.items()
    }
