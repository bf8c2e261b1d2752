"""Asking the controller for a certificate: the first one with a token (`enrol`), every other with the key (`renew`).

    enrol   token ── pin ──▶ GET CA ──▶ POST request ──▶ Granted: checked, written, current
    renew   ca.pem ────────────────────▶ POST request ──▶ Granted | Waiting | EnrolmentRefused

Both make a session key that nobody has seen, and change nothing unless all that was granted fits. They wait for the
network, so they are called by processes that may wait; when to ask is `core.renewal`'s.
"""

import secrets
import time
from collections.abc import Callable, Mapping

import msgspec

from muster_agent.errors import EnrolmentRefused, GrantUnusable, NotEnrolled
from muster_agent.identity.certificates import SessionKey, check_chain, identity_fingerprint
from muster_agent.identity.channel import DevicePort, ask, fetch_root, parse_device_url
from muster_agent.identity.folder import Credentials, Enrolled, IdentityFolder
from muster_agent.identity.keys import IdentityKey
from muster_shared import ids
from muster_shared.enrolment import (
    CertificateRequest,
    EnrolmentToken,
    Granted,
    Refused,
    SignedRequest,
    Waiting,
    check_labels,
    encode,
    signed_bytes,
)
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId
from muster_shared.link import BrokerUrlInvalid, parse_broker_url


def enrol(
    folder: IdentityFolder,
    key: IdentityKey,
    *,
    controller_url: str,
    token: EnrolmentToken,
    device: DeviceId,
    fleet: FleetId | None = None,
    labels: Mapping[str, str] | None = None,
    serial: str = "",
    device_class: str = "",
    agent_version: str = "",
    clock: Callable[[], float] = time.time,
) -> Enrolled | Waiting:
    """Ask for this device's first certificate, or for one of another controller, and make it the current one.

    Args:
        controller_url: `https://host[:8443]`, the device port.
        fleet: None: the one that the token is for.
        serial: Of the hardware, for tokens that are bound to a list of them.

    Returns:
        What is current now, or that somebody has to accept this device first: ask again with the same key.

    Raises:
        EnrolmentRefused: the controller says no.
        ControllerUntrusted: whoever answers is not the controller of the token; the token was not told.
        EnrolmentUnreachable: nobody answers, or not in our words.
        GrantUnusable: what was granted does not fit.
        KeyUnusable: the identity key did not sign.
        IdentityError: the certificate cannot be written.
    """
    where = parse_device_url(controller_url)
    root = fetch_root(where, token.ca)
    session = SessionKey.make()
    request = CertificateRequest(
        fleet=fleet or FleetId(""),
        device=device,
        csr=session.request(device),
        identity=key.public_pem(),
        nonce=_nonce(),
        asked_at=clock(),
        token_id=token.id,
        token_secret=token.secret,
        serial=serial,
        labels=dict(labels or {}),
        agent_version=agent_version,
        device_class=device_class,
    )
    answer = _ask(where, root, request, key, clock)
    if isinstance(answer, Waiting):
        return answer
    return _keep(folder, answer, request, session, answer.trust_root)


def renew(
    folder: IdentityFolder, key: IdentityKey, *, agent_version: str = "", clock: Callable[[], float] = time.time
) -> Enrolled | Waiting:
    """Ask for a new certificate for the enrolled device, and make it the current one. It needs no valid one.

    The TUF root stays the one that the device was enrolled with: whoever has the controller must not choose another.

    Raises:
        NotEnrolled: there is nothing to renew.
        IdentityError: as for `enrol`; IdentityDamaged if the folder cannot be read.
    """
    before = folder.current()
    if before is None:
        raise NotEnrolled(f"{folder.path} holds no certificate; run `muster-agent enrol` with a token")
    session = SessionKey.make()
    request = CertificateRequest(
        fleet=before.fleet,
        device=before.device,
        csr=session.request(before.device),
        identity=key.public_pem(),
        nonce=_nonce(),
        asked_at=clock(),
        agent_version=agent_version,
    )
    answer = _ask(parse_device_url(before.device_url), folder.ca(), request, key, clock)
    if isinstance(answer, Waiting):
        return answer
    return _keep(folder, answer, request, session, folder.root() or answer.trust_root)


def _ask(
    where: DevicePort, roots: str, request: CertificateRequest, key: IdentityKey, clock: Callable[[], float]
) -> Granted | Waiting:
    """Return the answer; a clock that is off is corrected by the controller's, once."""
    answer = ask(where, roots, _signed(request, key), clock)
    if isinstance(answer, Refused) and answer.code == "clock":
        again = msgspec.structs.replace(request, asked_at=answer.server_time, nonce=_nonce())
        answer = ask(where, roots, _signed(again, key), clock)
    if isinstance(answer, Refused):
        raise EnrolmentRefused(answer.code, answer.reason)
    return answer


def _signed(request: CertificateRequest, key: IdentityKey) -> bytes:
    body = encode(request)
    return encode(SignedRequest(body=body, signature=key.sign(signed_bytes(body))))


def _keep(
    folder: IdentityFolder, granted: Granted, request: CertificateRequest, session: SessionKey, root: bytes
) -> Enrolled:
    """Check all that was granted, then make it current."""
    if request.fleet and granted.fleet != request.fleet:
        raise GrantUnusable(f"the certificate is of fleet {granted.fleet!r}, but {request.fleet} was asked for")
    try:
        ids.name(granted.fleet, "fleet")
        check_labels(granted.labels)
        parse_broker_url(granted.broker_url)
        parse_device_url(granted.device_url)
    except (WireError, BrokerUrlInvalid, EnrolmentRefused) as error:
        raise GrantUnusable(
            f"the controller granted what cannot be used: {error}; look at its configuration"
        ) from error
    leaf = check_chain(granted.certificate, granted.ca, session, granted.fleet, request.device)
    enrolled = Enrolled(
        fleet=granted.fleet,
        device=request.device,
        broker_url=granted.broker_url,
        device_url=granted.device_url,
        fingerprint=leaf.fingerprint,
        identity_fingerprint=identity_fingerprint(request.identity),
        granted_at=granted.server_time,
        renew_at=granted.renew_at,
        expires_at=min(granted.expires_at, leaf.expires_at),
        labels=granted.labels,
    )
    folder.put(
        Credentials(
            enrolled=enrolled,
            session_key=session.pem(),
            certificate=granted.certificate,
            ca=granted.ca,
            root=root,
        )
    )
    return enrolled


def _nonce() -> str:
    return secrets.token_hex(16)
