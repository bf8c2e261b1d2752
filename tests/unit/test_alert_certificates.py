"""Whose certificates are watched: the fleet CA's, the page's, and those of mixers, which renew themselves."""

from pathlib import Path

import pytest

from muster_controller.alerts.sources import certificates
from muster_controller.core.alerts import rules
from muster_controller.core.alerts.expiring import DAY_S, expiring
from muster_controller.core.alerts.finding import Severity
from muster_controller.identity.enrolment import Identity, IdentityState
from muster_controller.identity.mixers import Mixer
from muster_shared.ids import DeviceId, Sha256

NOW = 1_800_000_000.0


def mixer(left_d: float | None, state: IdentityState = IdentityState.ACCEPTED) -> Mixer:
    identity = Identity(
        device=DeviceId("mixer.mixer-1.lab"),
        state=state,
        public_key="",
        fingerprint=Sha256("ab" * 32),
        token="",
        labels={},
        hardware_serial="",
        agent_version="",
        device_class="",
        asked_at=NOW,
        decided_at=NOW,
        decided_by="anna",
        reason="",
    )
    return Mixer("mixer-1", identity, "key", None if left_d is None else NOW + left_d * DAY_S, NOW)


@pytest.mark.parametrize(
    ("left_d", "severity"),
    [(3.6, None), (1.8, None), (1.7, Severity.TICKET), (0.6, Severity.PAGE), (-1.0, Severity.PAGE), (None, None)],
)
def test_a_mixer_that_did_not_renew_its_certificate_in_time_is_told(
    left_d: float | None, severity: Severity | None
) -> None:
    """Seven days, renewed from half of that on: at a quarter something is wrong, and at a tenth it is urgent."""
    found = list(expiring(rules.CERTIFICATE_EXPIRY, certificates([], [mixer(left_d)], None), NOW))

    assert [each.severity for each in found] == ([] if severity is None else [severity])
    assert all(each.subject == "certificate of mixer mixer-1" for each in found)


def test_a_mixer_that_was_revoked_is_to_get_no_other_certificate_and_is_not_told() -> None:
    assert certificates([], [mixer(0.1, IdentityState.REVOKED)], None) == []


def test_a_certificate_of_the_page_that_cannot_be_read_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    assert certificates([], [], tmp_path / "missing.pem") == []
