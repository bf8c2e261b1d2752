"""Attacks on enrolment and renewal: a real device port of a whole controller, and thieves with what can be stolen.

A device's identity key may be in hardware; its session key and certificate lie on its disk, and a token on a label.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace as with_changes

from harness.desk import client, local_token
from harness.enrolling import AskingDevice, csr, fetch_ca, post, public_pem
from muster_controller.config import ServerConfig
from muster_controller.db.identity_store import IdentityWriting
from muster_controller.identity import enrolment
from muster_controller.identity.enrolment import Asked, Decision, Identity, Token
from muster_controller.server import Controller
from muster_controller.whereabouts import read_running
from muster_shared.enrolment import Answer, EnrolmentToken, Granted, Refused, parse_token
from muster_shared.ids import FleetId

pytestmark = pytest.mark.broker
VICTIM = "crane-7"


# -- a copied certificate ----------------------------------------------------------------------------------------------


def test_attack_stolen_certificate_is_not_renewed_without_the_identity_key(tmp_path: Path) -> None:
    with port(tmp_path) as fleet:
        victim = AskingDevice(VICTIM)
        granted_by = victim.asks(time.time(), fleet.token())
        assert isinstance(fleet.ask(granted_by), Granted)

        answers = [fleet.ask(request) for request in (*renewals_by_a_thief(victim), granted_by)]

        assert codes(answers) == ["device", "request", "request", "request", "request"]
        assert isinstance(fleet.ask(victim.asks(time.time())), Granted)
        assert fleet.certificates(VICTIM) == 2


def test_attack_stolen_certificate_is_noticed_without_a_look_at_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = enrolment.decide

    def any_key(asked: Asked, token: Token | None, known: Sequence[Identity], now: float) -> Decision:
        named = next((each for each in known if each.device == asked.device), None)
        return decide(asked if named is None else replace(asked, fingerprint=named.fingerprint), token, known, now)

    monkeypatch.setattr(enrolment, "decide", any_key)
    with port(tmp_path) as fleet:
        victim = AskingDevice(VICTIM)
        fleet.ask(victim.asks(time.time(), fleet.token()))

        assert isinstance(fleet.ask(renewals_by_a_thief(victim)[0]), Granted)


def renewals_by_a_thief(victim: AskingDevice) -> list[bytes]:
    """Ask for a certificate in the victim's name, with all that is known of it but its identity key."""
    thief, now = AskingDevice(victim.name), time.time()
    session = victim.session  # On its disk, beside the certificate.
    on_disk = {"identity": public_pem(victim.identity)}
    as_session = AskingDevice(victim.name, identity=session)
    return [
        thief.asks(now),
        thief.signed(thief.request(now, **on_disk)),
        as_session.signed(as_session.request(now, **on_disk)),
        as_session.signed(as_session.request(now, csr=csr(session))),
    ]


# -- a token that somebody read ----------------------------------------------------------------------------------------


def test_attack_stolen_token_is_worth_nothing_beyond_its_uses_or_for_a_name_that_is_taken(tmp_path: Path) -> None:
    with port(tmp_path) as fleet:
        spent, open_still = fleet.token(uses=1), fleet.token(uses=2)
        victim, thief = AskingDevice(VICTIM), AskingDevice("thief-1")
        fleet.ask(victim.asks(time.time(), spent))

        beyond = fleet.ask(thief.asks(time.time(), spent))
        guessed = fleet.ask(thief.asks(time.time(), with_changes(open_still, secret=spent.secret)))
        taken = fleet.ask(AskingDevice(VICTIM).asks(time.time(), open_still))
        hers = fleet.ask(victim.asks(time.time(), open_still))

        assert codes([beyond, guessed, taken]) == ["token", "token", "device"]
        assert isinstance(hers, Granted)
        assert [each["device"] for each in fleet.get("/identities")["identities"]] == [VICTIM]
        assert fleet.uses(open_still) == 0


def test_attack_stolen_token_of_a_list_is_worth_nothing_for_another_name_or_number(tmp_path: Path) -> None:
    with port(tmp_path) as fleet:
        token = fleet.token(uses=9, approval="serial", serials={"SN-1": VICTIM, "SN-2": None})

        answers = [
            fleet.ask(AskingDevice("thief-1").asks(time.time(), token, serial="SN-1")),
            fleet.ask(AskingDevice("thief-1").asks(time.time(), token, serial="SN-3")),
            fleet.ask(AskingDevice("thief-1").asks(time.time(), token)),
        ]
        fleet.ask(AskingDevice("crane-8").asks(time.time(), token, serial="SN-2"))
        answers.append(fleet.ask(AskingDevice("thief-1").asks(time.time(), token, serial="SN-2")))

        assert codes(answers) == ["serial"] * 4
        assert isinstance(fleet.ask(AskingDevice(VICTIM).asks(time.time(), token, serial="SN-1")), Granted)


def test_attack_stolen_token_is_noticed_where_uses_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IdentityWriting, "spend", lambda rows, token: None)
    with port(tmp_path) as fleet:
        token = fleet.token(uses=1)
        fleet.ask(AskingDevice(VICTIM).asks(time.time(), token))

        assert isinstance(fleet.ask(AskingDevice("thief-1").asks(time.time(), token)), Granted)


def test_attack_stolen_token_is_noticed_where_names_belong_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = enrolment.decide
    monkeypatch.setattr(enrolment, "decide", lambda asked, token, known, now: decide(asked, token, (), now))
    with port(tmp_path) as fleet:
        token = fleet.token(uses=2)
        fleet.ask(AskingDevice(VICTIM).asks(time.time(), token))

        assert isinstance(fleet.ask(AskingDevice(VICTIM).asks(time.time(), token)), Granted)


# ----------------------------------------------------------------------------------------------------------------------


class Fleet:
    """A controller's device port, and its API for whoever administers it."""

    def __init__(self, port: int, api: httpx.Client) -> None:
        self._port = port
        self._root = fetch_ca(port)
        self._api = api

    def ask(self, raw: bytes) -> Answer:
        return post(self._port, self._root, raw)[1]

    def token(self, *, uses: int = 1, **said: Any) -> EnrolmentToken:
        answer = self._api.post("/enrol-tokens", json={"uses": uses, "ttl_s": 3600, **said})
        assert answer.is_success, answer.text
        return parse_token(answer.json()["token"])

    def get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()

    def uses(self, token: EnrolmentToken) -> int:
        return int(next(each["uses"] for each in self.get("/enrol-tokens")["tokens"] if each["id"] == token.id))

    def certificates(self, device: str) -> int:
        return len(self.get(f"/identities/{device}")["certificates"])


@contextmanager
def port(folder: Path) -> Iterator[Fleet]:
    config = ServerConfig(
        data=folder / "data", fleet=FleetId("test"), port=0, broker_port=0, device_port=0, open_lab=True
    )
    with Controller(config) as controller:
        api = client(controller.url, local_token(controller.data))
        try:
            running = read_running(controller.data)
            assert running is not None
            yield Fleet(int(running.device_url.rpartition(":")[2]), api)
        finally:
            api.close()


def codes(answers: Sequence[Answer]) -> list[str]:
    return [answer.code if isinstance(answer, Refused) else type(answer).__name__ for answer in answers]
