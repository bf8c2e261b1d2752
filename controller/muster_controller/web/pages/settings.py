"""Settings: the way to users and one's own account, where alerts are told, and how devices come in."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.alerts import list_receivers
from muster_controller.api.authentication import Who, require
from muster_controller.api.identity import list_enrol_tokens, list_identities, show_ca
from muster_controller.api.services import Given
from muster_controller.identity.enrolment import IdentityState
from muster_controller.operators.roles import Permission, may
from muster_controller.web.frame import pages, render

RECEIVERS_SHOWN = 100
TOKENS_SHOWN = 100
WAITING_SHOWN = 200
TTLS = ((3600, "an hour"), (86_400, "a day"), (7 * 86_400, "a week"), (30 * 86_400, "thirty days"))

router = pages()


@router.get("/settings")
def settings_page(request: Request, given: Given, who: Who) -> HTMLResponse:
    is_admin = may(who, Permission.ADMINISTER)
    return render(
        request,
        "settings.html",
        now=given.clock(),
        receivers=list_receivers(given, RECEIVERS_SHOWN, None).receivers if is_admin else [],
        users=len(given.operators.store.operators()) if is_admin else 0,
        waiting=len(list_identities(given, who, IdentityState.WAITING, WAITING_SHOWN).identities) if is_admin else 0,
        device_url=given.identity.device_url,
        broker_url=given.broker_url,
        api=str(request.base_url).rstrip("/"),
    )


@router.get("/settings/enrolment", dependencies=[require(Permission.ADMINISTER)])
def enrolment_page(request: Request, given: Given, who: Who) -> HTMLResponse:
    return render(
        request,
        "enrolment.html",
        now=given.clock(),
        tokens=list_enrol_tokens(given, who, TOKENS_SHOWN, None).tokens,
        waiting=list_identities(given, who, IdentityState.WAITING, WAITING_SHOWN).identities,
        ca=show_ca(given),
        ttls=TTLS,
        device_url=given.identity.device_url,
    )
