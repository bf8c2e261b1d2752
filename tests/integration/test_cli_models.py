"""The command line against a whole controller: what the pages of models and keys show and do."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.bundles import write_named_bundle
from harness.desk import MODEL, Desk, Puppets, open_desk, until, wait_for
from harness.publishing import sign
from muster_controller.cli.main import app
from muster_controller.registry.operator import revoke_release

pytestmark = pytest.mark.usefixtures("quiet")

Muster = Callable[..., Result]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("2.0.0", 2)
        desk.hire("ann", "publisher")
        with closing(Puppets(desk.controller.broker_url, ("dev-00", "dev-01"))):
            wait_for(desk, 2)
            rollout = desk.roll_out("2.0.0").json()["id"]
            until(lambda: desk.state(rollout) == "finished")
            yield desk


@pytest.fixture
def muster(desk: Desk) -> Muster:
    def run(*words: str) -> Result:
        environment = {"COLUMNS": "200", "MUSTER_TOKEN": desk.tokens["ann"], "MUSTER_URL": None}
        return CliRunner(env=environment).invoke(app, ["--url", desk.controller.url, *words])

    return run


def test_a_release_is_shown_with_who_signed_it_and_what_runs_it(muster: Muster) -> None:
    shown = muster("model", "show", MODEL, "2.0.0")
    found = json.loads(muster("model", "show", MODEL, "2.0.0", "--json").stdout)

    assert "Signed by 3 of the 3 keys of release-digits; 2 are needed" in shown.stdout
    assert "Serves on 2 devices" in shown.stdout
    assert "sim-cpu" in shown.stdout
    assert found["trust"]["role"]["threshold"] == 2
    assert found["use"]["classes"] == {"sim-cpu": 2}


def test_two_releases_are_compared(muster: Muster) -> None:
    shown = muster("model", "compare", MODEL, "1.0.0", "2.0.0")
    found = json.loads(muster("model", "compare", MODEL, "1.0.0", "2.0.0", "--json").stdout)

    assert "model.onnx" in shown.stdout
    assert "- # digits 1.0.0" in shown.stdout
    assert "+ # digits 2.0.0" in shown.stdout
    assert found["latency"][0]["devices_after"] == 2
    assert muster("model", "compare", MODEL, "1.0.0", "9.0.0").exit_code == 4


def test_publishing_may_be_tried_first_and_then_done(desk: Desk, muster: Muster, tmp_path: Path) -> None:
    bundle = write_named_bundle(tmp_path / "bundle", MODEL, "3.0.0", 3)
    signed = tmp_path / "signed.json"
    signed.write_bytes(sign(desk.folder / "operator", bundle, desk.http))

    tried = muster("model", "publish", str(bundle), "--signed", str(signed), "--check")
    versions = desk.get(f"/models/{MODEL}")["versions"]
    done = muster("model", "publish", str(bundle), "--signed", str(signed))

    assert "digits 3.0.0 would be added; 1 file would be sent" in tried.stdout
    assert "3.0.0" not in versions
    assert "digits 3.0.0 published" in done.stdout


def test_a_revocation_says_first_how_many_devices_serve_it(desk: Desk, muster: Muster, tmp_path: Path) -> None:
    signed = tmp_path / "revoked.json"
    base = desk.http.get(f"/models/{MODEL}/metadata").content
    revoked = revoke_release(desk.folder / "operator", MODEL, "2.0.0", base, datetime.now(UTC))
    signed.write_bytes(revoked.metadata)

    tried = muster("model", "push-metadata", MODEL, "--signed", str(signed), "--check")
    versions = desk.get(f"/models/{MODEL}")["versions"]
    done = muster("model", "push-metadata", MODEL, "--signed", str(signed))

    assert "digits 2.0.0 would be revoked; 2 devices serve it now" in tried.stdout
    assert "2.0.0" in versions
    assert "2.0.0" not in done.stdout


def test_bad_signatures_are_refused_before_anything_is_sent(desk: Desk, muster: Muster, tmp_path: Path) -> None:
    bundle = write_named_bundle(tmp_path / "bundle", MODEL, "4.0.0", 9)
    metadata = json.loads(sign(desk.folder / "operator", bundle, desk.http))
    metadata["signatures"] = metadata["signatures"][:1]
    signed = tmp_path / "signed.json"
    signed.write_text(json.dumps(metadata))

    refused = muster("model", "publish", str(bundle), "--signed", str(signed))

    assert refused.exit_code == 1
    assert "1 of the 2 keys" in refused.stderr


def test_keys_and_certificates_are_listed_with_the_names_that_the_operators_folder_knows(
    desk: Desk, muster: Muster
) -> None:
    shown = muster("trust", "keys", "--operator", str(desk.folder / "operator"))
    found = json.loads(muster("trust", "keys", "--json").stdout)

    assert shown.exit_code == 0
    assert "release-digits-1 (signed)" in shown.stdout
    assert "2 of 3" in shown.stdout
    assert "intermediate" in shown.stdout
    assert {each["role"] for each in found["roles"]} >= {"root", "targets", "snapshot", "timestamp", "release-digits"}
