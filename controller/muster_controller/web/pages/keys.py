"""The page of keys and certificates: what the fleet rests on, and when it runs out."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.keys import show_keys
from muster_controller.api.services import Given
from muster_controller.web.frame import pages, render
from muster_controller.web.key_present import certificate_rows, expiry_plot, role_rows
from muster_controller.web.model_present import key_short

RUNBOOKS = (
    ("create-keys", "Make keys"),
    ("sign-a-release", "Sign a release, or take one back"),
    ("lost-key", "A key is lost"),
    ("compromised-key", "A key is in wrong hands"),
    ("stolen-controller", "This controller is stolen"),
    ("stolen-device", "A device is stolen"),
    ("alert-certificate-expiry", "A certificate runs out"),
    ("alert-key-expiry", "Signed metadata runs out"),
)

router = pages()


@router.get("/keys")
def keys_page(request: Request, given: Given) -> HTMLResponse:
    found, now = show_keys(given), given.clock()
    return render(
        request,
        "keys.html",
        keys=found,
        roles=role_rows(found, now),
        certificates=certificate_rows(found.certificates, now),
        plot=expiry_plot(found.devices),
        key_short=key_short,
        runbooks=RUNBOOKS,
        now=now,
    )
