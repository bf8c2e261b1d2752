"""Operators over a whole controller: who gets in, what each may order, of which devices, and who else could not."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.browser import Browser
from harness.desk import MODEL, QUICK, Desk, Puppets, client, is_problem, open_desk, until, wait_for
from muster_controller.operators.lockout import FREE
from muster_controller.operators.roles import GRANTS, Permission, Role

PASSWORD = "three plain words"
NAMES = tuple(f"dev-{index:02}" for index in range(6))
OSLO, BERGEN = "dev-01", "dev-00"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("2.0.0", 2)
        yield desk


@pytest.fixture(scope="module")
def puppets(desk: Desk) -> Iterator[Puppets]:
    with closing(Puppets(desk.controller.broker_url, NAMES)) as puppets:
        wait_for(desk, len(NAMES))
        yield puppets


@pytest.fixture(scope="module")
def people(desk: Desk) -> dict[Role, httpx.Client]:
    """A client for each role."""
    return {role: desk.hire(f"a-{role.value}", role.value) for role in Role}


@pytest.fixture
def browser(desk: Desk) -> Iterator[Browser]:
    with Browser(desk.controller.url) as browser:
        yield browser


def employ(desk: Desk, name: str, role: str = "operator") -> str:
    """Make an operator with PASSWORD, by the API; return the name."""
    desk.http.post("/operators", json={"name": name, "role": role}).raise_for_status()
    desk.http.post(f"/operators/{name}/password", json={"password": PASSWORD}).raise_for_status()
    return name


# -- nobody --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/status", "/devices", "/openapi.json", "/no-such-thing", "/stream", "/operators"])
def test_nobody_is_told_anything_but_how_to_log_in(desk: Desk, path: str) -> None:
    with client(desk.controller.url, None) as nobody:
        answer = nobody.get(path)

    assert is_problem(answer, 401, "unauthenticated")
    assert "muster login" in answer.json()["detail"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("token", ["rubbish", "mst_" + "a" * 12 + "." + "b" * 43, "mlt_" + "b" * 43, "x" * 5000])
def test_a_token_that_is_none_lets_nobody_in_not_even_where_it_is_open(desk: Desk, token: str) -> None:
    with client(desk.controller.url, token) as nobody:
        assert is_problem(nobody.get("/status"), 401, "unauthenticated")
        assert is_problem(nobody.post("/login", json={"name": "x", "password": "y"}), 401, "unauthenticated")


def test_a_page_sends_nobody_to_the_login_and_back(desk: Desk, browser: Browser) -> None:
    sent = browser.http.get("/rollouts?x=1")

    assert sent.status_code == 303
    assert sent.headers["location"] == "/login?next=/rollouts%3Fx%3D1"
    assert 'name="next" value="/rollouts?x=1"' in browser.get("/rollouts?x=1").text
    assert browser.http.get("/static/muster.css").status_code == 200
    assert browser.http.get("/healthz").json() == {"status": "ok"}


def test_every_answer_has_the_headers_and_the_id_of_its_request(desk: Desk, browser: Browser) -> None:
    for path in ("/login", "/api/v1/status", "/static/muster.css", "/nothing"):
        headers = browser.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "strict-transport-security" not in headers
        assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])
    given = desk.http.get("/session", headers={"X-Request-ID": "order-0815"})
    odd = desk.http.get("/session", headers={"X-Request-ID": "no spaces, please"})
    assert given.headers["x-request-id"] == "order-0815"
    assert odd.headers["x-request-id"] != "no spaces, please"


# -- sessions ------------------------------------------------------------------------------------------------------


def test_the_first_start_makes_admin_with_a_link_that_opens_once(desk: Desk, browser: Browser) -> None:
    link = desk.controller.first_link
    assert link is not None
    path = link.removeprefix(desk.controller.url)

    short = browser.fill(path, "/login/once", password="short", again="short")
    unequal = browser.fill(path, "/login/once", password=PASSWORD, again=PASSWORD + "!")
    used = browser.fill(path, "/login/once", password=PASSWORD, again=PASSWORD)

    assert (short.status_code, unequal.status_code, used.status_code) == (422, 422, 303)
    assert browser.http.get("/api/v1/session").json()["name"] == "admin"
    assert "Log out" in browser.get("/").text
    with Browser(desk.controller.url) as other:
        again = other.get(path)
        assert again.status_code == 410
        assert "used already" in again.text
        assert other.log_in("admin", PASSWORD).status_code == 303


def test_a_second_link_voids_the_first(desk: Desk, browser: Browser) -> None:
    made = desk.http.post("/operators", json={"name": "linked", "role": "viewer"}).json()["link"]["link"]
    second = desk.http.post("/operators/linked/link", json={}).json()["link"]

    assert browser.http.get(made).status_code == 410
    assert browser.http.get(second).status_code == 200
    assert browser.http.get(second).status_code == 200, "looking at a link does not spend it"


def test_a_session_begins_anew_at_each_login_and_ends_at_the_logout(desk: Desk, browser: Browser) -> None:
    employ(desk, "ida")

    answer = browser.log_in("ida", PASSWORD)

    cookie = next(each for each in answer.headers.get_list("set-cookie") if each.startswith("muster-"))
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/" in cookie
    first = browser.session
    assert first is not None
    assert browser.fill("/account", "/account/password", current="wrong", password="x", again="x").status_code == 422
    changed = {"current": PASSWORD, "password": PASSWORD + "!", "again": PASSWORD + "!"}
    assert browser.fill("/account", "/account/password", **changed).status_code == 303
    second = browser.session
    assert second not in (None, first)
    assert status_with(desk, first) == 401
    assert status_with(desk, second) == 200
    assert browser.fill("/", "/logout").headers["location"] == "/login"
    assert status_with(desk, second) == 401
    assert browser.session is None


def status_with(desk: Desk, cookie: str | None) -> int:
    assert cookie is not None
    headers = {"Cookie": cookie}
    return httpx.get(f"{desk.controller.url}/api/v1/session", headers=headers, trust_env=False).status_code


def test_a_wrong_password_and_an_unknown_name_are_told_alike(desk: Desk, browser: Browser) -> None:
    employ(desk, "ole")

    wrong = browser.log_in("ole", "four plain words too")
    unknown = browser.log_in("nobody-at-all", "four plain words too")

    said = [re.findall(r'role="alert">([^<]+)<', each.text)[0] for each in (wrong, unknown)]
    assert (wrong.status_code, unknown.status_code) == (401, 401)
    assert said[0] == said[1]
    assert browser.session is None


def test_no_other_site_can_use_a_session(desk: Desk, browser: Browser) -> None:
    employ(desk, "siri", "admin")
    browser.log_in("siri", PASSWORD)
    order: dict[str, Any] = {"url": "/api/v1/operators/siri/unlock", "json": {}}
    own = {"Origin": desk.controller.url, "Sec-Fetch-Site": "same-origin"}

    def send(**headers: str) -> httpx.Response:
        return browser.http.post(**order, headers=headers)

    assert is_problem(send(Origin="https://evil.example"), 403, "cross-site")
    assert is_problem(send(**{"Sec-Fetch-Site": "cross-site"}), 403, "cross-site")
    assert is_problem(send(**{"Sec-Fetch-Site": "same-site"}), 403, "cross-site")
    assert is_problem(send(), 403, "cross-site")
    assert send(**own).status_code == 200
    as_form = browser.http.post("/api/v1/operators/siri/unlock", data={"x": "y"}, headers=own)
    assert is_problem(as_form, 415, "content-type")


def test_a_form_without_its_token_is_refused_whoever_sends_it(desk: Desk, browser: Browser) -> None:
    employ(desk, "tor", "admin")
    assert browser.send("/login", csrf="y", name="tor", password=PASSWORD, next="/").status_code == 403
    assert browser.send("/login", csrf="x" * 43, name="tor", password=PASSWORD, next="/").status_code == 403
    assert browser.log_in("tor", PASSWORD).status_code == 303

    refused = browser.send("/users", csrf="x" * 64, name="mallory", role="admin")

    assert refused.status_code == 403
    assert "another site" in refused.text
    assert is_problem(desk.http.get("/operators/mallory"), 404, "not-found")


# -- roles ---------------------------------------------------------------------------------------------------------

ORDERS: list[tuple[str, str, dict[str, Any] | None, Permission]] = [
    ("GET", "/status", None, Permission.VIEW),
    ("GET", "/stream-is-not-asked-here", None, Permission.ACCOUNT),
    ("GET", "/tokens", None, Permission.ACCOUNT),
    ("POST", "/policies/check", {"policy": {}}, Permission.VIEW),
    ("POST", "/rollouts", {"model": MODEL, "version": "1.0.0", "dry_run": True}, Permission.OPERATE),
    ("POST", f"/models/{MODEL}/rollback", {"to": "1.0.0", "dry_run": True}, Permission.OPERATE),
    ("POST", "/rollouts/none/pause", {}, Permission.OPERATE),
    ("POST", "/rollouts/none/abort", {}, Permission.OPERATE),
    ("POST", "/rollouts/none/approve", {}, Permission.APPROVE),
    ("POST", f"/models/{MODEL}/releases", {"metadata": "{}"}, Permission.PUBLISH),
    ("POST", "/trust/offline", {"root": "", "targets": "", "keys": ""}, Permission.PUBLISH),
    ("PUT", f"/blobs/{'0' * 64}", None, Permission.PUBLISH),
    ("GET", "/operators", None, Permission.ADMINISTER),
    ("POST", "/operators/nobody/disable", {}, Permission.ADMINISTER),
    ("POST", "/operators/nobody/role", {"role": "admin"}, Permission.ADMINISTER),
    ("GET", "/tokens?all=true", None, Permission.ADMINISTER),
    ("GET", "/audit", None, Permission.ADMINISTER),
]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(("method", "path", "body", "permission"), ORDERS)
def test_each_kind_of_route_refuses_whom_it_should(
    people: dict[Role, httpx.Client],
    method: str,
    path: str,
    body: dict[str, Any] | None,
    permission: Permission,
    role: Role,
) -> None:
    how: dict[str, Any] = {"json": body} if body is not None else {}
    if method == "PUT":
        how = {"content": b"x", "headers": {"Content-Type": "application/octet-stream"}}

    answer = people[role].request(method, path, **how)

    if permission in GRANTS[role]:
        assert answer.status_code not in (401, 403), answer.text
    else:
        assert is_problem(answer, 403, "forbidden")
        assert role.value in answer.json()["detail"]


@pytest.mark.parametrize(("role", "status"), [(Role.VIEWER, 403), (Role.APPROVER, 403), (Role.ADMIN, 200)])
def test_the_page_of_users_is_for_admins(people: dict[Role, httpx.Client], desk: Desk, role: Role, status: int) -> None:
    page = people[role].get(f"{desk.controller.url}/users")
    settings = people[role].get(f"{desk.controller.url}/settings").text

    assert page.status_code == status
    assert ('href="/users"' in settings) is (status == 200)


def test_a_role_is_changed_at_once_and_not_by_oneself(desk: Desk) -> None:
    boss = desk.hire("boss", "admin")
    before = boss.get("/operators").status_code

    own = boss.post("/operators/boss/role", json={"role": "viewer"})
    desk.http.post("/operators/boss/role", json={"role": "viewer", "reason": "holidays"}).raise_for_status()

    assert before == 200
    assert is_problem(own, 403, "forbidden")
    assert is_problem(boss.get("/operators"), 403, "forbidden")
    assert boss.get("/session").json()["role"] == "viewer"


# -- scopes --------------------------------------------------------------------------------------------------------


def test_an_operator_of_some_devices_sees_no_others(desk: Desk, puppets: Puppets) -> None:
    oslo = desk.hire("oslo-eyes", "operator", "site=oslo")

    devices = oslo.get("/devices").json()["devices"]

    assert puppets.names
    assert [each["id"] for each in devices] == ["dev-01", "dev-03", "dev-05"]
    assert oslo.get(f"/devices/{OSLO}").status_code == 200
    assert is_problem(oslo.get(f"/devices/{BERGEN}"), 404, "not-found")
    assert (oslo.get("/status").json()["devices"], desk.get("/status")["devices"]) == (3, 6)
    assert is_problem(oslo.get("/diff/devices", params={"a": OSLO, "b": BERGEN}), 404, "not-found")
    page = oslo.get(f"{desk.controller.url}/devices").text
    assert OSLO in page
    assert BERGEN not in page
    assert BERGEN not in oslo.get(f"{desk.controller.url}/").text
    assert oslo.get(f"{desk.controller.url}/devices/{BERGEN}").status_code == 404


def test_an_operator_of_some_devices_touches_no_others(desk: Desk, puppets: Puppets) -> None:
    oslo = desk.hire("oslo-hands", "operator", "site=oslo")
    order = {"model": MODEL, "version": "1.0.0", "policy": QUICK}

    everything = desk.http.post("/rollouts", json={**order, "policy": {**QUICK, "soak_s": 600.0}}).json()["id"]
    assert is_problem(oslo.post(f"/rollouts/{everything}/pause", json={}), 403, "forbidden")
    members = oslo.get(f"/rollouts/{everything}/members").json()["members"]
    assert {each["device"] for each in members} <= {"dev-01", "dev-03", "dev-05"}
    button = f"/api/v1/rollouts/{everything}/pause"
    assert button not in oslo.get(f"{desk.controller.url}/rollouts/{everything}").text
    assert button in desk.page(f"/rollouts/{everything}").text
    desk.order(everything, "abort")
    until(lambda: desk.state(everything) == "aborted")

    made = oslo.post("/rollouts", json=order).json()
    assert made["policy_written"]["selector"] == "site=oslo"
    until(lambda: desk.state(made["id"]) == "finished")
    assert desk.get("/status")["versions"][0]["devices"] == 3
    assert {each["device"] for each in desk.get("/events", rollout=made["id"])["events"]} == {
        "dev-01",
        "dev-03",
        "dev-05",
    }
    bergen = {**order, "version": "2.0.0", "policy": {**QUICK, "selector": "site=bergen"}}
    assert is_problem(oslo.post("/rollouts", json=bergen), 403, "forbidden")
    at_once = oslo.post(f"/models/{MODEL}/rollback", json={"to": "1.0.0"})
    assert is_problem(at_once, 403, "forbidden")
    assert "site=oslo" in at_once.json()["detail"]
    assert oslo.get("/events").json()["events"]


def test_an_admin_of_some_devices_is_no_admin(desk: Desk) -> None:
    answer = desk.http.post("/operators", json={"name": "half", "role": "admin", "selector": "site=oslo"})

    assert is_problem(answer, 403, "forbidden")


# -- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_is_less_than_its_operator_and_makes_only_lesser_ones(desk: Desk) -> None:
    anna = desk.hire("anna-t", "publisher")
    url = desk.controller.url

    lesser = anna.post("/tokens", json={"name": "eyes", "role": "viewer", "selector": "site=oslo", "ttl_s": 600}).json()
    greater = anna.post("/tokens", json={"name": "crown", "role": "admin"})
    others = anna.post("/tokens", json={"name": "theirs", "operator": "admin"})

    assert is_problem(greater, 403, "forbidden")
    assert is_problem(others, 403, "forbidden")
    with client(url, lesser["token"]) as eyes:
        assert eyes.get("/session").json()["role"] == "viewer"
        assert eyes.get("/session").json()["selector"] == "site=oslo"
        assert is_problem(eyes.post("/rollouts/none/pause", json={}), 403, "forbidden")
        assert is_problem(eyes.post("/tokens", json={"name": "more", "role": "publisher"}), 403, "forbidden")
        child = eyes.post("/tokens", json={"name": "child"}).json()
        assert (child["role"], child["selector"]) == ("viewer", "site=oslo")
        assert child["expires_at"] <= lesser["expires_at"] + 1.0
        assert [each["name"] for each in anna.get("/tokens").json()["credentials"]] == ["child", "eyes", "desk"]
        assert anna.delete(f"/tokens/{lesser['id']}", headers={"Content-Type": "application/json"}).status_code == 204
        assert is_problem(eyes.get("/session"), 401, "unauthenticated")
    stranger = desk.hire("stranger", "publisher")
    gone = stranger.delete(f"/tokens/{child['id']}", headers={"Content-Type": "application/json"})
    assert is_problem(gone, 404, "not-found")


def test_a_token_runs_out(desk: Desk) -> None:
    made = desk.http.post("/tokens", json={"name": "mayfly", "operator": "admin", "ttl_s": 0.2}).json()

    with client(desk.controller.url, made["token"]) as mayfly:
        until(lambda: mayfly.get("/session").status_code == 401)


def test_who_is_disabled_is_out_at_once_and_for_good(desk: Desk, browser: Browser) -> None:
    gone = desk.hire("gone", "admin")
    desk.http.post("/operators/gone/password", json={"password": PASSWORD}).raise_for_status()
    browser.log_in("gone", PASSWORD)
    session = browser.session
    assert (gone.get("/session").status_code, status_with(desk, session)) == (200, 200)

    desk.http.post("/operators/gone/disable", json={"reason": "left"}).raise_for_status()

    assert (gone.get("/session").status_code, status_with(desk, session)) == (401, 401)
    assert browser.log_in("gone", PASSWORD).status_code == 401
    desk.http.post("/operators/gone/enable", json={}).raise_for_status()
    assert (gone.get("/session").status_code, status_with(desk, session)) == (401, 401)


def test_a_second_person_is_another_person_not_another_token(desk: Desk, puppets: Puppets) -> None:
    eva = desk.hire("eva", "approver")
    eva_too = client(desk.controller.url, eva.post("/tokens", json={"name": "second"}).json()["token"])
    policy = {**QUICK, "waves": [1], "selector": "site=bergen", "approvals": [{"before": 1}]}

    made = eva.post("/rollouts", json={"model": MODEL, "version": "2.0.0", "policy": policy}).json()["id"]

    with eva_too:
        refused = eva_too.post(f"/rollouts/{made}/approve", json={})
    assert puppets.names
    assert is_problem(refused, 409, "order-refused")
    assert "eva" in refused.json()["detail"]
    forged = eva.post(f"/rollouts/{made}/approve", json={"actor": "ben"})
    assert is_problem(forged, 422, "request-invalid")
    assert desk.order(made, "approve", by="finn").json()["approvals"]["given"][0]["by"] == "finn"
    desk.order(made, "abort", by="finn")
    until(lambda: desk.state(made) in ("aborted", "finished"))


# -- lock-out, logs ------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_desk(tmp_path: Path) -> Iterator[Desk]:
    """One that nobody else fails to log in to."""
    with open_desk(tmp_path) as desk:
        yield desk


def test_failures_lock_a_name_for_a_while_known_or_not_but_never_the_local_token(quiet_desk: Desk) -> None:
    desk = quiet_desk
    employ(desk, "vera")

    def tries(name: str, password: str) -> httpx.Response:
        with client(desk.controller.url, None) as nobody:
            return nobody.post("/login", json={"name": name, "password": password})

    kinds: Callable[[str], list[str]] = lambda name: [  # noqa: E731
        str(tries(name, "wrong word here").json()["type"]).rpartition(":")[2] for _ in range(FREE + 1)
    ]
    assert kinds("vera") == kinds("nobody-here") == ["login-refused"] * FREE + ["login-locked"]
    right = tries("vera", PASSWORD)
    assert is_problem(right, 429, "login-locked")
    assert 0 < int(right.headers["retry-after"]) <= 30
    assert desk.get("/operators/vera")["failures"] == FREE
    assert desk.get("/session")["kind"] == "local"

    desk.http.post("/operators/vera/unlock", json={}).raise_for_status()

    token = tries("vera", PASSWORD).json()["token"]
    with client(desk.controller.url, token) as vera:
        assert vera.get("/session").json()["name"] == "vera"
    assert "operator.locked" in {each["action"] for each in desk.get("/audit", subject="vera")["lines"]}


def test_logins_from_one_address_are_slowed(quiet_desk: Desk) -> None:
    with client(quiet_desk.controller.url, None) as nobody:
        answers = [nobody.post("/login", json={"name": "BAD NAME", "password": "x"}) for _ in range(30)]

    assert is_problem(answers[-1], 429, "too-many-requests")
    assert int(answers[-1].headers["retry-after"]) > 0
    assert quiet_desk.get("/session")["kind"] == "local"


def test_every_change_is_in_the_audit_log_with_who_why_and_which_request(desk: Desk) -> None:
    chief = desk.hire("chief", "admin")
    headers = {"X-Request-ID": "audit-4711"}

    chief.post("/operators", json={"name": "rookie", "role": "viewer", "reason": "hired"}, headers=headers)
    chief.post("/operators/rookie/disable", json={"reason": "left"}, headers=headers)
    chief.post("/tokens", json={"name": "mine", "reason": "build"}, headers=headers)

    lines = desk.get("/audit", actor="chief")["lines"]
    told = {each["action"]: (each["subject"], each["reason"], each["request_id"]) for each in lines}
    assert told["operator.create"] == ("rookie", "hired", "audit-4711")
    assert told["operator.disable"] == ("rookie", "left", "audit-4711")
    assert told["token.create"] == ("chief", "build", "audit-4711")
