"""Who gets a certificate: the decisions over every state, and the documents that they are decided on."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from harness.enrolling import AskingDevice, csr, new_key, public_pem
from muster_controller.identity import enrolment
from muster_controller.identity.device_port import source_of
from muster_controller.identity.enrolment import (
    Approval,
    Asked,
    Decision,
    Grant,
    Hold,
    Identity,
    IdentityState,
    Refuse,
    Token,
    decide,
)
from muster_controller.identity.errors import EnrolmentConflict, RequestInvalid
from muster_controller.identity.requests import verify
from muster_shared.enrolment import (
    REQUEST_BYTES_MAX,
    CertificateRequest,
    EnrolmentToken,
    SignedRequest,
    decode_signed,
    encode,
    parse_token,
    signed_bytes,
)
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, Sha256

NOW = 1_800_000_000.0
DEVICE, OTHER = DeviceId("dev-1"), DeviceId("dev-2")
KEY, OTHER_KEY = Sha256("a" * 64), Sha256("b" * 64)

TOKEN = Token(
    id="t1",
    secret_sha256="c" * 64,
    labels={"site": "berlin"},
    uses_max=2,
    uses=0,
    created_at=NOW - 10,
    created_by="anna",
    expires_at=NOW + 100,
    revoked_at=None,
    approval=Approval.TOKEN,
    serials={},
)
ASKED = Asked(
    device=DEVICE,
    public_key="PEM",
    fingerprint=KEY,
    token_id="t1",
    secret_is_right=True,
    serial="",
    agent_version="1.0",
    device_class="nuc",
)
RENEWAL = replace(ASKED, token_id="", secret_is_right=False)
IDENTITY = Identity(
    device=DEVICE,
    state=IdentityState.ACCEPTED,
    public_key="PEM",
    fingerprint=KEY,
    token="t1",
    labels={"site": "oslo"},
    hardware_serial="",
    agent_version="0.9",
    device_class="nuc",
    asked_at=NOW - 5,
    decided_at=NOW - 5,
    decided_by="token t1",
    reason="",
)
WAITING = replace(IDENTITY, state=IdentityState.WAITING, decided_at=None, decided_by="")


def code(decision: Decision) -> str | None:
    return decision.code if isinstance(decision, Refuse) else None


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_who_has_the_token_is_in_and_has_its_labels() -> None:
    decision = decide(ASKED, TOKEN, [], NOW)

    assert isinstance(decision, Grant)
    assert decision.spends
    assert (decision.identity.state, decision.identity.labels) == (IdentityState.ACCEPTED, {"site": "berlin"})


@pytest.mark.parametrize(
    ("asked", "token"),
    [
        (ASKED, None),
        (replace(ASKED, secret_is_right=False), TOKEN),
        (ASKED, replace(TOKEN, expires_at=NOW)),
        (ASKED, replace(TOKEN, revoked_at=NOW - 1)),
        (ASKED, replace(TOKEN, uses=2)),
    ],
    ids=["unknown", "wrong secret", "run out", "revoked", "spent"],
)
@pytest.mark.parametrize("approval", [Approval.TOKEN, Approval.MANUAL])
def test_a_token_that_does_not_hold_lets_nobody_in(asked: Asked, token: Token | None, approval: Approval) -> None:
    token = None if token is None else replace(token, approval=approval)

    assert code(decide(asked, token, [], NOW)) == "token"


def test_an_unknown_token_and_a_wrong_secret_are_told_apart_by_nobody() -> None:
    unknown = decide(ASKED, None, [], NOW)
    wrong = decide(replace(ASKED, secret_is_right=False), TOKEN, [], NOW)

    assert unknown == wrong


def test_a_wrong_secret_does_not_learn_which_names_are_taken() -> None:
    asked = replace(ASKED, secret_is_right=False, fingerprint=OTHER_KEY)

    assert decide(asked, TOKEN, [IDENTITY], NOW) == decide(asked, TOKEN, [], NOW)


# -- keys and names ----------------------------------------------------------------------------------------------------


def test_a_name_that_another_key_has_is_refused_whatever_the_token() -> None:
    for state in IdentityState:
        taken = replace(IDENTITY, state=state)
        decision = decide(replace(ASKED, fingerprint=OTHER_KEY), TOKEN, [taken], NOW)
        assert (state, code(decision)) == (state, "device")


def test_a_device_whose_answer_was_lost_is_granted_again_without_another_use() -> None:
    spent = replace(TOKEN, uses=2, expires_at=NOW - 1)

    decision = decide(ASKED, spent, [IDENTITY], NOW)

    assert decision == Grant(IDENTITY, spends=False)


def test_a_renewal_needs_the_key_and_no_token() -> None:
    assert decide(RENEWAL, None, [IDENTITY], NOW) == Grant(IDENTITY, spends=False)


def test_a_renewal_by_another_key_or_of_nobody_is_refused_alike() -> None:
    stranger = replace(RENEWAL, fingerprint=OTHER_KEY)

    assert code(decide(stranger, None, [IDENTITY], NOW)) == "device"
    assert decide(stranger, None, [IDENTITY], NOW) == decide(RENEWAL, None, [], NOW)


def test_a_copied_disk_does_not_become_a_second_device() -> None:
    decision = decide(replace(ASKED, device=OTHER), TOKEN, [IDENTITY], NOW)

    assert code(decision) == "device"


@pytest.mark.parametrize("asked", [ASKED, RENEWAL, replace(ASKED, device=OTHER)])
def test_a_revoked_key_is_refused_under_every_name(asked: Asked) -> None:
    revoked = replace(IDENTITY, state=IdentityState.REVOKED)

    assert code(decide(asked, TOKEN, [revoked], NOW)) == "revoked"


def test_a_revoked_key_stays_refused_when_its_device_was_forgotten() -> None:
    tombstone = replace(IDENTITY, device=DeviceId("dev-1.aaaaaaaaaaaaaaaa"), state=IdentityState.REVOKED)

    assert code(decide(ASKED, TOKEN, [tombstone], NOW)) == "revoked"


# -- approval ----------------------------------------------------------------------------------------------------------


def test_with_a_manual_token_a_device_waits_and_has_its_place() -> None:
    decision = decide(ASKED, replace(TOKEN, approval=Approval.MANUAL), [], NOW)

    assert isinstance(decision, Hold)
    assert decision.spends
    assert decision.identity.state is IdentityState.WAITING


@pytest.mark.parametrize("asked", [ASKED, RENEWAL])
def test_who_waits_goes_on_waiting_for_nothing(asked: Asked) -> None:
    token = replace(TOKEN, approval=Approval.MANUAL, uses=2, expires_at=NOW - 1)

    assert decide(asked, token, [WAITING], NOW) == Hold(WAITING, spends=False)


def test_who_waits_may_come_in_with_another_token() -> None:
    decision = decide(replace(ASKED, token_id="t2"), replace(TOKEN, id="t2"), [WAITING], NOW)

    assert isinstance(decision, Grant)
    assert (decision.spends, decision.identity.token) == (True, "t2")


def test_who_was_accepted_is_granted_and_who_was_rejected_hears_why() -> None:
    accepted = enrolment.accept(WAITING, "anna", "seen it", NOW)
    rejected = enrolment.reject(WAITING, "anna", "not ours", NOW)

    refused = decide(ASKED, TOKEN, [rejected], NOW)

    assert decide(RENEWAL, None, [accepted], NOW) == Grant(accepted, spends=False)
    assert isinstance(refused, Refuse)
    assert (refused.code, "not ours" in refused.reason) == ("device", True)


@pytest.mark.parametrize(
    ("order", "state"),
    [
        (enrolment.accept, IdentityState.ACCEPTED),
        (enrolment.accept, IdentityState.REVOKED),
        (enrolment.reject, IdentityState.ACCEPTED),
        (enrolment.reject, IdentityState.REVOKED),
        (enrolment.revoke, IdentityState.REVOKED),
    ],
)
def test_orders_that_do_not_fit_how_a_device_stands_are_refused(order: object, state: IdentityState) -> None:
    assert callable(order)

    with pytest.raises(EnrolmentConflict, match="dev-1"):
        order(replace(IDENTITY, state=state), "anna", "", NOW)


SERIAL_TOKEN = replace(TOKEN, approval=Approval.SERIAL, serials={"S1": None, "S2": OTHER})


@pytest.mark.parametrize(
    ("serial", "expected"),
    [("S1", None), ("S2", "serial"), ("S3", "serial"), ("", "serial")],
    ids=["listed", "another's", "not listed", "none"],
)
def test_only_hardware_on_the_list_enrols_under_the_name_that_it_is_to_have(serial: str, expected: str | None) -> None:
    assert code(decide(replace(ASKED, serial=serial), SERIAL_TOKEN, [], NOW)) == expected


def test_one_serial_number_is_one_device() -> None:
    first = replace(IDENTITY, hardware_serial="S1")
    asked = replace(ASKED, device=OTHER, fingerprint=OTHER_KEY, serial="S1")

    assert code(decide(asked, SERIAL_TOKEN, [first], NOW)) == "serial"


def test_a_serial_number_that_somebody_claims_with_a_token_without_a_list_blocks_nobody() -> None:
    claimed = replace(IDENTITY, device=OTHER, fingerprint=OTHER_KEY, token="t9", hardware_serial="S1")

    assert isinstance(decide(replace(ASKED, serial="S1"), SERIAL_TOKEN, [claimed], NOW), Grant)


@given(
    state=st.sampled_from(IdentityState),
    same_key=st.booleans(),
    same_name=st.booleans(),
    renews=st.booleans(),
    right=st.booleans(),
    uses=st.integers(0, 3),
    age=st.integers(-200, 200),
    approval=st.sampled_from(Approval),
)
def test_whatever_stands_a_grant_is_to_the_accepted_key_or_by_a_token_that_holds(
    state: IdentityState,
    same_key: bool,
    same_name: bool,
    renews: bool,
    right: bool,
    uses: int,
    age: int,
    approval: Approval,
) -> None:
    known = replace(
        IDENTITY, state=state, device=DEVICE if same_name else OTHER, fingerprint=KEY if same_key else OTHER_KEY
    )
    token = replace(TOKEN, uses=uses, expires_at=NOW + age, approval=approval, serials={"": None})
    asked = replace(ASKED, token_id="" if renews else "t1", secret_is_right=right and not renews)

    decision = decide(asked, None if renews else token, [known], NOW)

    holds = right and not renews and age > 0 and uses < 2
    is_known = same_key and same_name and state is IdentityState.ACCEPTED
    if isinstance(decision, Grant):
        assert is_known or (holds and approval is not Approval.MANUAL)
        assert decision.spends == (not is_known)
        assert decision.identity.state is IdentityState.ACCEPTED
        assert decision.identity.fingerprint == KEY
        assert decision.identity.device == DEVICE
    if same_key and state is IdentityState.REVOKED:
        assert code(decision) == "revoked"


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_request_comes_back_as_it_was_signed() -> None:
    device = AskingDevice("dev-1")
    request = device.request(NOW, labels={"line": "2"}, serial="S1")

    verified = verify(device.signed(request))

    assert verified.request == request
    assert verified.session.public_numbers() == device.session.public_key().public_numbers()


def test_a_request_that_was_changed_after_it_was_signed_is_refused() -> None:
    device = AskingDevice("dev-1")
    signed, request = decode_signed(device.asks(NOW))
    changed = encode(msgspec.structs.replace(request, device=OTHER))

    with pytest.raises(RequestInvalid, match="not signed"):
        verify(encode(SignedRequest(body=changed, signature=signed.signature)))


def test_a_signature_of_the_same_bytes_for_another_purpose_is_worth_nothing() -> None:
    device = AskingDevice("dev-1")
    body = encode(device.request(NOW))
    bare = device.identity.sign(body, ec.ECDSA(hashes.SHA256()))

    with pytest.raises(RequestInvalid, match="not signed"):
        verify(encode(SignedRequest(body=body, signature=bare)))
    assert signed_bytes(body) != body


def test_a_csr_that_somebody_else_signed_is_refused() -> None:
    device, other = AskingDevice("dev-1"), new_key()
    good = csr(other)
    lines = good.splitlines()
    broken = "\n".join([*lines[:-2], ("A" if lines[-2][0] != "A" else "B") + lines[-2][1:], lines[-1]])

    with pytest.raises(RequestInvalid):
        verify(device.asks(NOW, csr=broken))


def test_the_identity_key_is_not_certified_itself() -> None:
    device = AskingDevice("dev-1")

    with pytest.raises(RequestInvalid, match="key of its own"):
        verify(device.asks(NOW, csr=csr(device.identity)))


def test_keys_of_another_kind_are_refused() -> None:
    device = AskingDevice("dev-1")
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = edwards.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    large = public_pem(ec.generate_private_key(ec.SECP384R1()))

    for identity in (pem, large, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "nothing", "ö"):
        with pytest.raises(RequestInvalid):
            verify(device.asks(NOW, identity=identity))
    with pytest.raises(RequestInvalid, match=r"P-256"):
        verify(device.asks(NOW, csr=csr(ec.generate_private_key(ec.SECP384R1()))))


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "Dev 1"},
        {"device": "controller.test"},
        {"fleet": "a/b"},
        {"fleet": ""},
        {"nonce": "0" * 31},
        {"nonce": "G" * 32},
        {"serial": "a\nb"},
        {"serial": "x" * 129},
        {"agent_version": "\x00"},
        {"device_class": "\x1b[2J"},
        {"labels": {"": "x"}},
        {"labels": {"key": "a\x00"}},
        {"labels": {"key": "x" * 257}},
        {"labels": {f"k{number}": "x" for number in range(33)}},
    ],
)
def test_what_no_device_may_say_is_refused_at_the_edge(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        verify(AskingDevice("dev-1").asks(NOW, **changes))


def test_a_fleet_may_be_left_out_with_a_token_alone() -> None:
    token = EnrolmentToken(id="t1", secret="s", ca=KEY)

    verified = verify(AskingDevice("dev-1").asks(NOW, token, fleet=FleetId("")))

    assert verified.request.fleet == ""


def test_what_is_larger_than_a_request_is_not_even_read() -> None:
    with pytest.raises(WireError, match="cap"):
        verify(b" " * (REQUEST_BYTES_MAX + 1))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    with pytest.raises((WireError, RequestInvalid)):
        verify(raw)


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_no_signed_bytes_raise_anything_else(body: bytes, signature: bytes) -> None:
    with pytest.raises((WireError, RequestInvalid)):
        verify(encode(SignedRequest(body=body, signature=signature)))


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_in_the_place_of_keys_raises_anything_else(identity: str, request: str) -> None:
    device = AskingDevice("dev-1", identity=_KEY)
    made = CertificateRequest(
        fleet=FleetId("test"), device=DEVICE, csr=request, identity=identity, nonce="0" * 32, asked_at=NOW
    )

    with pytest.raises((WireError, RequestInvalid)):
        verify(device.signed(made))


_KEY = new_key()


def test_a_token_survives_being_copied_and_does_not_show_its_secret() -> None:
    token = EnrolmentToken(id="t1", secret="S" * 43, ca=KEY)

    assert parse_token(str(token)) == token
    assert "S" * 43 not in repr(token)
    with pytest.raises(WireError, match="copied whole"):
        parse_token(str(token)[:-5])


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_host_is_one_source_whichever_of_its_addresses_it_takes(address: str, source: str) -> None:
    assert source_of(address) == source
