"""The page of alerts: what fires, what is silenced, and the objectives that alerts are made of."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.objectives import list_objectives
from muster_controller.api.services import Given
from muster_controller.core.alerts.machine import State
from muster_controller.core.alerts.rules import RULES
from muster_controller.web.frame import pages, render
from muster_shared.metrics import DAY_S

ENDED_SHOWN = 20
ALERTS_SHOWN = 200
ENDED_S = 7 * DAY_S
OBJECTIVES_SHOWN = 200
SILENCE_LENGTHS = ((3600, "an hour"), (4 * 3600, "four hours"), (86_400, "a day"), (7 * 86_400, "a week"))

router = pages()


@router.get("/alerts")
def alerts_page(request: Request, given: Given) -> HTMLResponse:
    now = given.clock()
    firing = given.alerts.alerts.alerts(states=(State.FIRING,), limit=ALERTS_SHOWN)
    silences = given.alerts.alerts.silences()
    firing.sort(key=lambda alert: (-alert.severity.rank, alert.began_at))
    return render(
        request,
        "alerts.html",
        now=now,
        firing=[
            {
                "id": alert.id,
                "rule": alert.rule,
                "subject": alert.subject,
                "severity": alert.severity.value,
                "summary": alert.summary,
                "began_at": alert.began_at,
                "acknowledged_by": alert.acknowledged_by,
                "silenced": any(each.covers(alert, now) for each in silences),
                "runbook": f"/runbooks/alert-{alert.rule}",
            }
            for alert in firing
        ],
        silences=silences,
        lengths=SILENCE_LENGTHS,
        ended=given.alerts.alerts.alerts(states=(State.RESOLVED,), since=now - ENDED_S, limit=ENDED_SHOWN),
        objectives=list_objectives(given, OBJECTIVES_SHOWN, None).objectives,
        rules=[
            {"name": rule.name, "title": rule.title, "runbook": f"/runbooks/alert-{rule.name}"}
            for rule in RULES.values()
        ],
        models=sorted({release.model for release in given.releases.releases()}),
        is_partial=given.is_partial,
    )
