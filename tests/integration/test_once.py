"""Orders that are sent again, and things that changed meanwhile: idempotency keys and `ETag`s on a real controller."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.desk import Desk, open_desk

pytestmark = pytest.mark.broker

JSON = {"Content-Type": "application/json"}  # A DELETE has no body, but says that it is no form.
OBJECTIVE = {"model": "digits", "indicator": "availability", "target": 0.999}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("once")) as found:
        for name in ("ada", "bea"):
            found.http.post("/operators", json={"name": name, "role": "admin"}).raise_for_status()
        yield found


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


def token_wanted(name: str) -> dict[str, object]:
    return {"name": name, "operator": "ada", "role": "viewer"}


def test_the_same_order_is_carried_out_once_and_answered_twice(desk: Desk) -> None:
    said = key()

    first = desk.http.post("/tokens", json=token_wanted("ci"), headers=said)
    second = desk.http.post("/tokens", json=token_wanted("ci"), headers=said)

    assert first.status_code == 201, first.text
    assert "idempotency-replayed" not in first.headers
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["content-type"] == first.headers["content-type"]
    names = [each["name"] for each in desk.http.get("/tokens", params={"all": True}).json()["credentials"]]
    assert names.count("ci") == 1


def test_a_key_with_another_order_is_refused(desk: Desk) -> None:
    said = key()
    desk.http.post("/tokens", json=token_wanted("one"), headers=said)

    found = desk.http.post("/tokens", json=token_wanted("two"), headers=said)

    assert found.status_code == 422
    assert found.json()["type"] == "urn:muster:problem:idempotency-key-reused"


def test_a_refused_order_may_be_sent_again_with_its_key(desk: Desk) -> None:
    said = key()

    refused = desk.http.delete("/objectives/later", headers={**said, "Content-Type": "application/json"})
    desk.http.put("/objectives/later", json=OBJECTIVE)
    done = desk.http.delete("/objectives/later", headers={**said, "Content-Type": "application/json"})

    assert refused.status_code == 404
    assert done.status_code in (200, 204), done.text


def test_a_guessable_key_is_refused(desk: Desk) -> None:
    found = desk.http.post("/tokens", json=token_wanted("short"), headers={"Idempotency-Key": "1"})

    assert found.status_code == 422
    assert "16" in found.json()["detail"]


def test_neither_keys_nor_secrets_stand_in_the_database(desk: Desk) -> None:
    said = key()

    secret = desk.http.post("/tokens", json=token_wanted("hidden"), headers=said).json()["token"]

    kept = b"".join(each.read_bytes() for each in Path(desk.folder / "data").glob("muster.db*"))
    assert secret.encode() not in kept
    assert said["Idempotency-Key"].encode() not in kept
    assert desk.http.post("/tokens", json=token_wanted("hidden"), headers=said).json()["token"] == secret


def test_what_is_known_already_is_not_sent_again(desk: Desk) -> None:
    first = desk.http.get("/objectives")

    again = desk.http.get("/objectives", headers={"If-None-Match": first.headers["etag"]})

    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == first.headers["etag"]
    desk.http.put("/objectives/fresh", json=OBJECTIVE)
    changed = desk.http.get("/objectives", headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200


def test_a_change_of_what_somebody_else_changed_is_refused(desk: Desk) -> None:
    desk.http.put("/objectives/shared", json=OBJECTIVE)
    seen = desk.http.get("/objectives/shared").headers["etag"]

    first = desk.http.put("/objectives/shared", json={**OBJECTIVE, "target": 0.99}, headers={"If-Match": seen})
    second = desk.http.put("/objectives/shared", json={**OBJECTIVE, "target": 0.9}, headers={"If-Match": seen})

    assert first.status_code in (200, 204), first.text
    assert second.status_code == 412
    assert desk.http.get("/objectives/shared").json()["target"] == 0.99


@pytest.mark.parametrize("wanted", ["*", '"0123456789abcdef0123456789abcdef"'])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_what_is_not_there_fits_no_if_match(desk: Desk, method: str, wanted: str) -> None:
    body = OBJECTIVE if method == "PUT" else None

    found = desk.http.request(method, "/objectives/nowhere", json=body, headers={"If-Match": wanted, **JSON})

    assert found.status_code == 412, found.text
    assert "nothing here" in found.json()["detail"]
    assert desk.http.get("/objectives/nowhere").status_code == 404


def test_a_star_fits_whatever_is_there(desk: Desk) -> None:
    desk.http.put("/objectives/starred", json=OBJECTIVE)

    found = desk.http.put("/objectives/starred", json={**OBJECTIVE, "target": 0.9}, headers={"If-Match": "*"})

    assert found.status_code in (200, 204), found.text
    assert desk.http.get("/objectives/starred").json()["target"] == 0.9


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_order_that_was_carried_out_is_answered_again_though_its_if_match_is_over(desk: Desk, method: str) -> None:
    desk.http.put("/objectives/again", json=OBJECTIVE)
    said = {**key(), **JSON, "If-Match": desk.http.get("/objectives/again").headers["etag"]}
    body = {**OBJECTIVE, "target": 0.99} if method == "PUT" else None

    first, second = (desk.http.request(method, "/objectives/again", json=body, headers=said) for _ in range(2))

    assert first.status_code in (200, 204), first.text
    assert second.status_code == first.status_code
    assert second.headers["idempotency-replayed"] == "true"


def test_keys_of_others_are_their_own(desk: Desk) -> None:
    said = key()
    other = desk.http.post("/tokens", json={"name": "other", "operator": "bea"}).json()["token"]
    desk.http.post("/tokens", json=token_wanted("mine"), headers=said)

    found = desk.http.post("/tokens", json=token_wanted("mine"), headers={**said, "Authorization": f"Bearer {other}"})

    assert "idempotency-replayed" not in found.headers
