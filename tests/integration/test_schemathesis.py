"""Every route of the API under generated requests: no server error, and every answer is what the document says.

Bounded and derandomised: the same requests each time, against a real controller in this process.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import closing

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from harness.desk import MODEL, QUICK, Desk, Puppets, open_desk, until, wait_for
from muster_controller.api import document

EXAMPLES = 8  # Of each operation; with some thirty of them it takes half a minute.
OPEN = ("/api/v1/login",)
ENDLESS = "/stream"  # It answers for ever.
CHECKS = (not_a_server_error, response_schema_conformance, content_type_conformance, status_code_conformance)

KEYS = itertools.count()

schema = schemathesis.openapi.from_dict(json.loads(document.text()))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("2.0.0", 2)
        with closing(Puppets(desk.controller.broker_url, ("dev-00", "dev-01", "dev-02", "dev-03"))):
            wait_for(desk, 4)
            rollout = desk.roll_out("1.0.0", QUICK).json()["id"]
            until(lambda: desk.state(rollout) == "finished")
            yield desk


def make_meaningful(case: schemathesis.Case, fleet: Desk) -> None:
    """Let about half of the requests speak of things that are there: the others never get past a 404."""
    if len(repr((case.path_parameters, case.body))) % 2:
        return
    known = {"rollout_id": fleet.get("/rollouts")["rollouts"][0]["id"], "device_id": "dev-00", "model": MODEL}
    for name in set(known) & set(case.path_parameters or {}):
        case.path_parameters[name] = known[name]
    if isinstance(case.body, dict):
        said = {"model": MODEL, "version": "2.0.0", "to": "1.0.0", "policy": {**QUICK, "priority": 10}}
        case.body = {name: said.get(name, value) for name, value in case.body.items()}


@schema.exclude(path_regex=ENDLESS).parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_a_server_error_and_answers_are_as_documented(case: schemathesis.Case, fleet: Desk) -> None:
    make_meaningful(case, fleet)
    if "Idempotency-Key" in case.headers:  # Generated ones are often the same, and then most orders would be refused.
        case.headers["Idempotency-Key"] = f"{next(KEYS):032d}"
    case.headers.pop("content-length", None)  # One that lies about the body has the server wait for the rest.

    case.headers["Authorization"] = fleet.http.headers["Authorization"]

    response = case.call(base_url=fleet.controller.url, timeout=20.0)

    case.validate_response(response, checks=list(CHECKS))
    if case.path not in OPEN:
        for token in (None, "Bearer mst_000000000000." + "0" * 43):
            case.headers.pop("Authorization")
            case.headers.update({} if token is None else {"Authorization": token})
            assert refused(case, fleet.controller.url), f"{case.method} {case.path} lets {token or 'nobody'} in"
            case.headers["Authorization"] = ""


def refused(case: schemathesis.Case, url: str) -> bool:
    """Return whether the request, as it is, is turned away before any route sees it: because of who sends it, or before
    that because of what kind of content it says it is, or because nobody may ask as often as this test does."""
    answer = case.call(base_url=url, timeout=20.0)
    kinds = {401: "unauthenticated", 415: "content-type", 429: "too-many-requests"}
    return str(answer.json()["type"]).endswith(f":{kinds.get(answer.status_code)}")
