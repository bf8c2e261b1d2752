"""Routes: the labels in use, and their edit for all devices of a filter at once.

Labels are given by operators (an enrolment token, an edit here) or claimed by the device; what is given goes first. An
edit changes what is given, so it reaches devices that have an identity: in an open lab none has.
"""

from typing import Annotated

from fastapi import APIRouter, Query

from muster_controller.api.asking import filter_of, words_of
from muster_controller.api.authentication import Who, because, require
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.labels import (
    DeviceChoice,
    DeviceQuestion,
    LabelOrder,
    LabelPage,
    LabelsChanged,
    LabelValueView,
    LabelView,
)
from muster_controller.api.services import Given
from muster_controller.core.selector import RESERVED, parse
from muster_controller.errors import Conflict
from muster_controller.fleet_index.view import FleetView, KeyCount
from muster_controller.identity.relabelling import edit_of
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission
from muster_shared.errors import WireError

VALUES_SHOWN = 20

router = APIRouter(tags=["labels"])


@router.get("/labels", dependencies=[require(Permission.VIEW)])
def list_labels(
    given: Given,
    prefix: Annotated[str, Query(max_length=256, description="Of a key; with `=`, of a value of that key.")] = "",
    values: Annotated[int, Query(ge=0, le=1000, description="At most so many values of each key.")] = VALUES_SHOWN,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many keys.")] = 100,
    cursor: Offset = None,
) -> LabelPage:
    """Label keys in use with their most frequent values: what a selector could say."""
    view = given.committed().view
    key, equals, start = prefix.partition("=")
    fitting = [each for each in view.label_keys() if (each.key == key if equals else each.key.startswith(prefix))]
    page, following = paged(fitting, cursor, limit)
    return LabelPage(labels=[label_view(view, each, values, start) for each in page], next=following)


def label_view(view: FleetView, counted: KeyCount, values: int, prefix: str = "") -> LabelView:
    return LabelView(
        key=counted.key,
        devices=counted.devices,
        values=counted.values,
        top=[
            LabelValueView(value=each.value, devices=each.devices, standings=dict(each.standings))
            for each in (view.label_values(counted.key, values, prefix=prefix) if values else ())
        ],
    )


@router.post("/devices/labels", dependencies=[require(Permission.ADMINISTER)])
def edit_labels(given: Given, who: Who, order: LabelOrder) -> LabelsChanged:
    """Set labels of all devices that fit, and take others off; or say what that would do."""
    if given.open_lab:
        raise Conflict("in an open lab devices have no identities; set labels in their own configuration")
    question = _question(order)
    edit = edit_of(order.set, order.unset, order.changes)
    scoped = sorted((edit.given.keys() | edit.taken) & parse(who.selector).keys)
    if scoped:
        raise Forbidden(f"{who.name} is there for {who.selector} alone; {scoped[0]!r} decides who that is")
    devices = list(given.committed().view.devices(filter_of(question, given)))
    if order.expect is not None and order.expect != len(devices):
        raise Conflict(f"{len(devices):,} devices fit by now, not {order.expect:,}; look at the list again")
    said = "; ".join(f"{key}={value}" for key, value in words_of(question).items()) or "every device"
    with because(order.reason):
        changed, same = given.identity.enrolment.relabel(devices, edit, said[:200], is_dry=order.dry_run)
    if changed and not order.dry_run:
        given.identity.labels.refresh()
    return LabelsChanged(
        devices=len(devices),
        changed=changed,
        unchanged=same,
        without_identity=len(devices) - changed - same,
        dry_run=order.dry_run,
    )


def _question(order: LabelOrder) -> DeviceQuestion:
    if order.where is None and order.selector is None:
        raise WireError("say whose labels: `selector` or `where`; an empty selector is every device")
    where = order.where or DeviceChoice.model_validate({})
    if order.selector is None:
        return where
    if where.selector:
        raise WireError("say the selector once: `selector` is short for `where.selector`")
    return where.model_copy(update={"selector": order.selector})


def completions(view: FleetView, text: str, limit: int = 40) -> list[str]:
    """Return how a selector that is being typed could go on: whole texts, with what was typed before."""
    head, word = _last_term(text)
    negated = "!" if word.startswith("!") else ""
    word = word.removeprefix("!")
    key, equals, start = word.partition("=")
    if equals:
        operator = "!=" if key.endswith("!") else "="
        name = key.rstrip("!").strip()
        return [f"{head}{name}{operator}{each.value}" for each in view.label_values(name, limit, prefix=start.strip())]
    found = [each.key for each in view.label_keys() if each.key.startswith(word.strip())]
    own_first = sorted(found, key=lambda each: (each.startswith(RESERVED), each))[:limit]
    return [f"{head}{negated}{each}" for each in own_first]


def _last_term(text: str) -> tuple[str, str]:
    """Return what stands before the last condition, and that; a comma inside brackets ends none."""
    depth = start = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            start = at + 1
    return text[:start], text[start:].lstrip()
