"""What the page of keys and certificates shows, ready to be shown. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from muster_controller.api.schemas.releases import CertificateOwn, DeviceCertificates, KeysView, RoleView
from muster_controller.web.lifetimes import Lifetime, lifetime, of_metadata
from muster_controller.web.plots import Axis, Plot, Series, Shape, Tone

DAY_S = 86_400.0
MIXER_S = 7 * DAY_S
RUNBOOKS = {
    "root": ("rotate-root", "Rotate the root keys, or renew the root"),
    "targets": ("rotate-root", "Renew the targets"),
    "snapshot": ("rotate-online-keys", "Replace this controller's keys"),
    "timestamp": ("rotate-online-keys", "Replace this controller's keys"),
}
RELEASES = ("rotate-release-keys", "Change who signs, or renew")
WORDS = {
    "root": "root of the fleet CA",
    "intermediate": "intermediate: it issues",
    "announced": "announced root",
    "retired": "retired intermediate",
    "server": "broker and device port",
    "controller": "this controller, to the broker",
    "page": "page and API",
    "mixer": "mixer",
}


@dataclass(frozen=True)
class RoleRow:
    role: RoleView
    life: Lifetime | None
    """None: nothing is signed yet."""
    runbook: str
    remedy: str

    @property
    def model(self) -> str:
        """The model whose releases the role signs; empty: it signs none."""
        return self.role.role.removeprefix("release-") if self.role.role.startswith("release-") else ""


@dataclass(frozen=True)
class CertificateRow:
    what: str
    certificate: CertificateOwn
    life: Lifetime


def role_rows(found: KeysView, now: float) -> tuple[RoleRow, ...]:
    return tuple(_row(role, now) for role in found.roles)


def certificate_rows(found: Sequence[CertificateOwn], now: float) -> tuple[CertificateRow, ...]:
    """Return the certificates, what runs out first at the top; those that nothing rests on come last."""
    rows = [_certificate(each, now) for each in found]
    return tuple(sorted(rows, key=lambda row: (row.certificate.role in ("announced", "retired"), row.life.expires_at)))


def expiry_plot(found: DeviceCertificates) -> Plot:
    """Return how many devices' certificates run out in each day from now."""
    last = len(found.days) - 1
    names = [
        f"{datetime.fromtimestamp(each.begins_at, UTC):%-d %b}" + (" or later" if number == last else "")
        for number, each in enumerate(found.days)
    ]
    most = max(range(len(names)), key=lambda number: found.days[number].devices, default=0)
    words = (
        f"{found.valid} devices have a certificate that holds; most of them run out around {names[most]}. "
        "Devices renew theirs by themselves at half of their life."
        if found.valid
        else "No device has a certificate of this fleet's CA."
    )
    points = [(float(number), float(each.devices)) for number, each in enumerate(found.days)]
    return Plot(
        id="device-certificates-plot",
        title="Device certificates by the day they run out",
        words=words,
        series=(Series("devices", points if found.valid else (), tone=Tone.V1, shape=Shape.BAR),),
        x=Axis.NAME,
        names=names,
        low=0.0,
        height=160,
    )


def _row(role: RoleView, now: float) -> RoleRow:
    runbook, remedy = RUNBOOKS.get(role.role, RELEASES)
    life = None if role.expires_at is None else of_metadata(role.role, role.expires_at, now)
    return RoleRow(role, life, runbook, remedy)


def _certificate(each: CertificateOwn, now: float) -> CertificateRow:
    known = each.role in ("page", "mixer")
    whole = MIXER_S if each.issued_at is None else each.expires_at - each.issued_at
    life = lifetime(each.role if known else f"ca-{each.role}", each.name, each.expires_at, whole, now)
    return CertificateRow(WORDS.get(each.role, each.role), each, life)
