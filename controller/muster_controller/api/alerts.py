"""Routes: alerts, silences, and the receivers that are told.

Alerts are of the whole fleet: who sees a part of it may read them, and orders none.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from muster_controller.alerts.desk import Standing
from muster_controller.alerts.mqtt import Login
from muster_controller.api.authentication import Who, because, require
from muster_controller.api.fleet import Limit
from muster_controller.api.hub import Change
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.alerts import (
    Acknowledgement,
    AlertPage,
    AlertView,
    NewReceiver,
    NewSilence,
    ReceiverMade,
    ReceiverPage,
    ReceiverTested,
    ReceiverView,
    RulePage,
    RuleView,
    SilencePage,
    SilenceView,
)
from muster_controller.api.schemas.operators import Because
from muster_controller.api.services import Given, Services
from muster_controller.core.alerts.machine import Alert, Silence, State, is_silenced
from muster_controller.core.alerts.rules import RULES
from muster_controller.db.receiver_store import Kind, Queue
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission, Principal

router = APIRouter(tags=["alerts"])

_VIEW, _OPERATE, _ADMINISTER = (
    [require(each)] for each in (Permission.VIEW, Permission.OPERATE, Permission.ADMINISTER)
)


@router.get("/alerts", dependencies=_VIEW)
def list_alerts(
    given: Given,
    state: Annotated[list[State] | None, Query(max_length=3, description="Default: firing and resolved.")] = None,
    rule: Annotated[str | None, Query(max_length=64)] = None,
    subject: Annotated[str | None, Query(max_length=256)] = None,
    since: Annotated[
        float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds: what had not ended then.")
    ] = None,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(max_length=64, description="`next` of the page before.")] = None,
) -> AlertPage:
    """Alerts, newest first."""
    found = given.alerts.alerts.alerts(
        states=state or (), rule=rule, subject=subject, since=since, after=cursor, limit=limit
    )
    silences, now = given.alerts.alerts.silences(), given.clock()
    views = [_alert(each, silences, now) for each in found]
    return AlertPage(alerts=views, next=views[-1].id if len(views) == limit else None)


@router.get("/alerts/rules", dependencies=_VIEW)
def list_alert_rules() -> RulePage:
    """Every alert that there can be, all in one page."""
    views = [
        RuleView(name=each.name, title=each.title, for_s=each.for_s, clear_s=each.clear_s, runbook=each.runbook)
        for each in RULES.values()
    ]
    return RulePage(rules=views, next=None)


@router.get("/alerts/{alert}", dependencies=_VIEW)
def show_alert(given: Given, alert: str) -> AlertView:
    """One alert: what it was decided from, who looks at it, and its runbook."""
    return _alert(given.alerts.alerts.alert(alert), given.alerts.alerts.silences(), given.clock())


@router.post("/alerts/{alert}/acknowledge", dependencies=_OPERATE)
def acknowledge_alert(given: Given, who: Who, alert: str, order: Acknowledgement) -> AlertView:
    """Say that you look at it: it is not told again, except when it gets worse, and when it is over."""
    _of_the_whole_fleet(given, who)
    with because(order.comment):
        found = given.alerts.alerts.acknowledge(alert, order.comment)
    given.hub.changed(Change("alert", found.id))
    return _alert(found, given.alerts.alerts.silences(), given.clock())


# -- silences ----------------------------------------------------------------------------------------------------------


@router.get("/silences", dependencies=_VIEW)
def list_silences(given: Given, limit: Limit = 100, cursor: Offset = None) -> SilencePage:
    """Silences that have not ended."""
    page, following = paged(given.alerts.alerts.silences(), cursor, limit)
    return SilencePage(silences=[_silence(each) for each in page], next=following)


@router.post("/silences", status_code=201, dependencies=_OPERATE)
def create_silence(given: Given, who: Who, order: NewSilence) -> SilenceView:
    """Keep what fits from being told, for a while. It still fires, and is listed."""
    _of_the_whole_fleet(given, who)
    with because(order.reason):
        made = given.alerts.silence(order.rule, order.subject, order.length_s, order.reason, order.begins_at)
    return _silence(made)


@router.delete("/silences/{silence}", status_code=204, dependencies=_OPERATE)
def end_silence(given: Given, who: Who, silence: str) -> Response:
    """End it now. What still fires is told at the next look."""
    _of_the_whole_fleet(given, who)
    given.alerts.alerts.end_silence(silence)
    return Response(status_code=204)


# -- receivers ---------------------------------------------------------------------------------------------------------


@router.get("/receivers", dependencies=_ADMINISTER)
def list_receivers(given: Given, limit: Limit = 100, cursor: Offset = None) -> ReceiverPage:
    """Receivers by name, with what waits for them; not their secrets. An address may be one, so this is for admins."""
    page, following = paged(given.alerts.receivers(), cursor, limit)
    return ReceiverPage(receivers=[_receiver(each) for each in page], next=following)


@router.post("/receivers", status_code=201, dependencies=_ADMINISTER)
def add_receiver(given: Given, order: NewReceiver) -> ReceiverMade:
    """Add a receiver. The secret of a webhook's signature is in this answer and nowhere else."""
    with because(order.reason):
        login = Login(password=order.password, ca=order.ca, certificate=order.certificate)
        made = given.alerts.add_receiver(
            order.name, order.kind, order.address, order.severities, reviews=order.reviews, login=login
        )
    secret = made.secret if made.kind is Kind.WEBHOOK else None
    return ReceiverMade(receiver=_receiver(Standing(made, Queue())), secret=secret)


@router.delete("/receivers/{name}", status_code=204, dependencies=_ADMINISTER)
def remove_receiver(given: Given, name: str) -> Response:
    """Remove it, and what waits for it."""
    given.alerts.remove_receiver(name)
    return Response(status_code=204)


@router.post("/receivers/{name}/test", dependencies=_ADMINISTER)
def try_receiver(given: Given, name: str, order: Because) -> ReceiverTested:
    """Tell it that this is a test, at once; 502 where it does not take it."""
    with because(order.reason):
        given.alerts.test_receiver(name)
    return ReceiverTested()


def _of_the_whole_fleet(given: Services, who: Principal) -> None:
    if given.is_partial:
        raise Forbidden(f"{who.name} orders devices of {who.selector} alone, and alerts are of the whole fleet")


def _alert(alert: Alert, silences: list[Silence], now: float) -> AlertView:
    rule = RULES.get(alert.rule)
    return AlertView(
        id=alert.id,
        rule=alert.rule,
        subject=alert.subject,
        severity=alert.severity,
        state=alert.state,
        summary=alert.summary,
        facts=dict(alert.facts),
        runbook="" if rule is None else rule.runbook,
        began_at=alert.began_at,
        changed_at=alert.changed_at,
        seen_at=alert.seen_at,
        resolved_at=alert.resolved_at,
        told_at=alert.told_at,
        times=alert.times,
        silenced=is_silenced(alert, silences, now),
        acknowledged_by=alert.acknowledged_by,
        acknowledged_at=alert.acknowledged_at,
        comment=alert.comment,
    )


def _silence(silence: Silence) -> SilenceView:
    return SilenceView(
        id=silence.id,
        rule=silence.rule,
        subject=silence.subject,
        begins_at=silence.begins_at,
        ends_at=silence.ends_at,
        by=silence.by,
        reason=silence.reason,
    )


def _receiver(standing: Standing) -> ReceiverView:
    receiver, queue = standing.receiver, standing.queue
    return ReceiverView(
        name=receiver.name,
        kind=receiver.kind,
        address=receiver.address,
        severities=list(receiver.severities),
        reviews=receiver.reviews,
        created_at=receiver.created_at,
        created_by=receiver.created_by,
        disabled_at=receiver.disabled_at,
        waiting=queue.waiting,
        told=queue.told,
        given_up=queue.given_up,
        error=queue.error,
    )
