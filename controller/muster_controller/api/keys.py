"""Routes: the keys and certificates that the fleet rests on, and when they run out. Reads only.

All of it is public: fingerprints, key ids and times. Private halves are nowhere near.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from fastapi import APIRouter

from muster_controller.api.authentication import require
from muster_controller.api.release_views import role_view
from muster_controller.api.schemas.releases import (
    CertificateOwn,
    DeviceCertificates,
    DeviceExpiry,
    ExpiryBin,
    KeysView,
)
from muster_controller.api.services import Given, Services
from muster_controller.identity.certificates import DAY_S, pin
from muster_controller.operators.roles import Permission
from muster_controller.registry.signatures import role_trusts

DAYS = 14
"""That are told apart: devices' certificates hold for a week."""
SOONEST = 10
FILE_BYTES_MAX = 1024 * 1024

router = APIRouter(tags=["trust"], dependencies=[require(Permission.VIEW)])


@router.get("/keys")
def show_keys(given: Given) -> KeysView:
    """Every role of the trust metadata with its keys, every certificate of the controller's own, and how the devices'
    run out."""
    repository, ca = given.releases.repository, given.identity.enrolment.ca
    owners = {each.key: each.mixer for each in given.identity.mixers.all() if each.key}
    return KeysView(
        roles=[role_view(each) for each in role_trusts(given.releases.trust_messages())],
        assignment_keys=sorted(repository.assignment_keys()),
        mixer_keys={key: owners.get(key, "") for key in sorted(repository.mixer_keys())},
        certificates=list(_certificates(given)),
        root_key_is_here=ca.has_root_key,
        devices=_devices(given),
    )


def _certificates(given: Services) -> Iterator[CertificateOwn]:
    for each in given.identity.enrolment.ca.describe():
        yield CertificateOwn(
            role=each.role, name=each.subject, sha256=each.sha256, issued_at=each.issued_at, expires_at=each.expires_at
        )
    found = None if given.page_certificate is None else _read(given.page_certificate)
    if found is not None:
        yield found
    for mixer in given.identity.mixers.all():
        if mixer.expires_at is not None:
            yield CertificateOwn(role="mixer", name=mixer.mixer, sha256="", issued_at=None, expires_at=mixer.expires_at)


def _devices(given: Services) -> DeviceCertificates:
    """Return how the devices' certificates run out; their sums are of the whole fleet, names of those that are seen."""
    found = given.identity.enrolment.expiries(DAY_S, SOONEST)
    steps = [0] * DAYS
    for step, count in found.steps.items():
        steps[min(max(step, 0), DAYS - 1)] += count
    return DeviceCertificates(
        valid=sum(steps),
        lapsed=found.lapsed,
        revoked=found.revoked,
        days=[ExpiryBin(begins_at=found.at + step * DAY_S, devices=count) for step, count in enumerate(steps)],
        soonest=[DeviceExpiry(device=name, expires_at=at) for name, at in found.soonest if given.sees(name)],
    )


def _read(file: Path) -> CertificateOwn | None:
    """Return the certificate of the page; None: it cannot be read, which its owner says elsewhere."""
    with suppress(OSError, ValueError, IndexError), file.open("rb") as stream:
        leaf = x509.load_pem_x509_certificates(stream.read(FILE_BYTES_MAX))[0]
        return CertificateOwn(
            role="page",
            name=leaf.subject.rfc4514_string() or "page and API",
            sha256=pin(leaf),
            issued_at=leaf.not_valid_before_utc.timestamp(),
            expires_at=leaf.not_valid_after_utc.timestamp(),
        )
    return None
