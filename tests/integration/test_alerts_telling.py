"""Telling over real sockets: signatures that others can check, retries that end, mail with and without TLS."""

import random
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.certificates import SmallCa
from harness.clock import Clock
from harness.receivers import Hook, PostOffice, running_hook, running_post_office
from muster_controller.alerts.errors import ReceiverGone, ReceiverInvalid, TellingFailed
from muster_controller.alerts.mail import Mails
from muster_controller.alerts.smtp import SmtpConfig, check_address, parse_smtp
from muster_controller.alerts.telling import FIRST_S, LONGEST_S, Teller, wait_s
from muster_controller.alerts.webhook import Webhooks, check_url, new_secret, signature
from muster_controller.core.alerts.grouping import Body, body
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.receiver_store import GIVE_UP_S, Kind, Receiver, ReceiverStore
from muster_controller.db.side import SideDatabase

NOW = 1_800_000_000.0
SECRET = new_secret()


class World:
    """A queue in a database, and what empties it."""

    def __init__(self, side: SideDatabase, clock: Clock) -> None:
        self.clock = clock
        self.store = ReceiverStore(side, clock)
        self.teller = Teller(self.store, {Kind.WEBHOOK: Webhooks(total_s=5.0)}, clock, random.Random(7))

    def add(self, name: str, url: str) -> None:
        self.store.add(Receiver(name, Kind.WEBHOOK, url, secret=SECRET, created_at=NOW, created_by="anna"))

    def queue(self, *names: str, to: str = "ops") -> None:
        self.store.tell((name, to, said()) for name in names)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock, where = Clock(NOW), tmp_path / "muster.db"
    with SqlLedger(where, clock):
        pass  # It migrates.
    with SideDatabase(find_database(where)) as side:
        yield World(side, clock)


@pytest.fixture
def hook() -> Iterator[Hook]:
    with running_hook() as hook:
        yield hook


def said() -> Body:
    return body("alert.firing", "[lab] page: drift, digits", "It drifts.", {"rule": "drift"}, NOW)


def to(hook: Hook) -> Receiver:
    return Receiver("ops", Kind.WEBHOOK, hook.url, secret=SECRET)


# -- webhooks ----------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_specifications_example() -> None:
    # The example of the Standard Webhooks specification and its libraries' tests.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    payload = b'{"test": 2432232314}'

    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, payload)

    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_webhook_is_posted_as_json_and_its_signature_holds(hook: Hook) -> None:
    Webhooks().send(to(hook), "n-1", said(), NOW)

    (post,) = hook.posts
    assert post.path == "/alerts"
    assert post.json["type"] == "alert.firing"
    assert post.json["data"] == {"rule": "drift"}
    assert (post.headers["webhook-id"], post.headers["webhook-timestamp"]) == ("n-1", "1800000000")
    assert post.headers["content-type"] == "application/json"
    assert post.is_signed_with(SECRET)
    assert not post.is_signed_with(new_secret())


def test_a_redirect_is_not_followed(hook: Hook) -> None:
    hook.answers = [(307, {"Location": hook.url + "/elsewhere"})]

    with pytest.raises(TellingFailed, match="307, a redirect"):
        Webhooks().send(to(hook), "n-1", said(), NOW)

    assert [post.path for post in hook.posts] == ["/alerts"]


def test_a_webhook_that_does_not_answer_is_left_in_time(hook: Hook) -> None:
    hook.holds = threading.Event()

    with pytest.raises(TellingFailed, match=r"no answer in 0\.3 s"):
        Webhooks(total_s=0.3).send(to(hook), "n-1", said(), NOW)


def test_an_address_that_may_be_a_secret_is_in_no_error(hook: Hook) -> None:
    hook.answers = [(410, {})]

    with pytest.raises(ReceiverGone) as gone:
        Webhooks().send(to(hook), "n-1", said(), NOW)
    with pytest.raises(TellingFailed) as away:
        Webhooks().send(Receiver("ops", Kind.WEBHOOK, "http://127.0.0.1:9/token", secret=SECRET), "n", said(), NOW)

    assert "/alerts" not in str(gone.value)
    assert "token" not in str(away.value)


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "https://", "http:///x", "https://user:pass@x/y", "https://x:99999/", "//x", "http://x/ü", "a b"],
)
def test_what_is_no_webhook_is_refused(url: str) -> None:
    with pytest.raises(ReceiverInvalid):
        check_url(url)


def test_addresses_inside_are_what_on_premise_means() -> None:
    assert check_url("http://10.0.0.7:9000/hook?x=1")
    assert check_url("https://ops.example/hook")


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_a_notice_is_tried_again_with_the_same_id_until_it_is_taken(world: World, hook: Hook) -> None:
    world.add("ops", hook.url)
    world.queue("n-1")
    hook.answers = [(500, {}), (503, {})]
    told = [world.teller.turn()]

    while not told[-1]:
        assert world.teller.turn() == 0  # It is not due.
        assert len(hook.posts) == len(told)
        world.clock.now += LONGEST_S
        told.append(world.teller.turn())

    assert told == [0, 0, 1]
    assert [post.headers["webhook-id"] for post in hook.posts] == ["n-1"] * 3
    assert all(post.is_signed_with(SECRET) for post in hook.posts)
    assert len({post.headers["webhook-timestamp"] for post in hook.posts}) == 3
    assert world.store.queues()["ops"].told == 1


def test_after_a_day_a_notice_is_given_up(world: World, hook: Hook) -> None:
    world.add("ops", hook.url)
    world.queue("n-1")
    hook.answers = [(500, {})] * 1000

    while world.store.queues()["ops"].waiting:
        world.teller.turn()
        world.clock.now += 60

    assert world.clock.now <= NOW + GIVE_UP_S + 60
    assert 20 < len(hook.posts) < 100
    assert world.store.queues()["ops"].given_up == 1


def test_one_that_does_not_answer_holds_up_nobody_else(world: World, hook: Hook) -> None:
    world.add("away", "http://127.0.0.1:9/")
    world.add("ops", hook.url)
    world.queue("a-1", "a-2", "a-3", to="away")
    world.queue("n-1", "n-2")

    assert world.teller.turn() == 2

    queues = world.store.queues()
    assert (queues["ops"].told, queues["away"].waiting) == (2, 3)
    assert world.teller.turn() == 0  # All three of them wait, though one alone was tried.


def test_a_webhook_that_is_gone_is_told_nothing_more(world: World, hook: Hook) -> None:
    world.add("ops", hook.url)
    world.queue("n-1", "n-2")
    hook.answers = [(410, {})]

    world.teller.turn()
    world.clock.now += LONGEST_S
    world.teller.turn()

    assert len(hook.posts) == 1
    assert world.store.receiver("ops").disabled_at is not None
    assert world.store.queues()["ops"].given_up == 2


def test_waits_double_up_to_an_hour_and_are_scattered() -> None:
    assert [wait_s(attempts, 0.5) for attempts in (1, 2, 3)] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert wait_s(1000, 0.5) == LONGEST_S
    assert wait_s(1, 0.0) == FIRST_S / 2
    assert wait_s(1, 1.0) == FIRST_S * 1.5


# -- mail --------------------------------------------------------------------------------------------------------------

ANNA = Receiver("anna", Kind.EMAIL, "anna@harbour.example")


def settings(office: PostOffice, scheme: str, user: str = "") -> SmtpConfig:
    url = f"{scheme}://{f'{user}@' if user else ''}127.0.0.1:{office.port}"
    return parse_smtp(url, "pass word" if user else "", "muster@harbour.example")


def test_a_mail_says_what_it_is_about_and_that_no_person_wrote_it() -> None:
    with running_post_office() as office:
        Mails(settings(office, "smtp+plain")).send(ANNA, "n-1", said(), NOW)

    (mail,) = office.mails
    assert (mail["From"], mail["To"]) == ("muster@harbour.example", "anna@harbour.example")
    assert mail["Subject"] == "[lab] page: drift, digits"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"] == "<n-1@harbour.example>"
    assert str(mail.get_payload()).strip() == "It drifts."


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_password_travels_inside_of_tls_alone(scheme: str, tmp_path: Path) -> None:
    ca = SmallCa.make(tmp_path, "lab")
    leaf = ca.leaf("post", server_names=("127.0.0.1",))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(leaf.certificate, leaf.key)

    def trust() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(ca.roots))

    with running_post_office("starttls" if scheme == "smtp" else "tls", server) as office:
        config = settings(office, scheme, user="muster")
        Mails(config, trust).send(ANNA, "n-1", said(), NOW)
        with pytest.raises(TellingFailed, match="SSLCertVerificationError"):
            Mails(config).send(ANNA, "n-2", said(), NOW)

    assert office.logins == ["\0muster\0pass word"]
    assert len(office.mails) == 1


def test_without_starttls_nothing_is_sent() -> None:
    with running_post_office("plain") as office, pytest.raises(TellingFailed):
        Mails(settings(office, "smtp", user="muster")).send(ANNA, "n-1", said(), NOW)

    assert (office.logins, office.mails) == ([], [])


def test_a_mail_that_is_refused_is_tried_again(world: World) -> None:
    with running_post_office() as office:
        mails = Mails(settings(office, "smtp+plain"))
        teller = Teller(world.store, {Kind.EMAIL: mails}, world.clock, random.Random(7))
        world.store.add(ANNA)
        world.queue("n-1", to="anna")
        office.refusals = ["451 later"]

        first = teller.turn()
        said_then = world.store.queues()["anna"].error
        world.clock.now += LONGEST_S
        second = teller.turn()

    assert (first, second) == (0, 1)
    assert "451" in said_then
    assert len(office.mails) == 1


@pytest.mark.parametrize(
    "url",
    [
        "smtp://user:secret@host",
        "http://host",
        "smtp://",
        "smtp+plain://user@host",
        "smtps://user@host",
        "smtp://host/x",
    ],
)
def test_settings_for_mail_that_cannot_hold_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ReceiverInvalid) as refused:
        parse_smtp(url)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("address", ["anna", "@x", "anna@", "a b@x", "a@x\r\nBcc: b@x", "Anna <a@x>", "a@x,b@x", "ä@x"])
def test_what_is_no_mail_address_is_refused(address: str) -> None:
    with pytest.raises(ReceiverInvalid):
        check_address(address)
