"""Passwords, lock-out, rate limits and credentials, without a database and without waiting."""

import pytest
from argon2 import PasswordHasher

from muster_controller.operators import credentials
from muster_controller.operators.credentials import CredentialKind
from muster_controller.operators.errors import OidcFailed, PasswordUnfit
from muster_controller.operators.limits import RateLimit
from muster_controller.operators.lockout import FORGET_S, FREE, LONGEST_S, Attempts, Failures, lock_s
from muster_controller.operators.oidc import LOGIN_S, Attempt, Oidc
from muster_controller.operators.oidc_config import OidcConfig, parse_role
from muster_controller.operators.passwords import Passwords, check_fit
from muster_controller.operators.roles import Role
from muster_controller.web.pages.accounts import safe

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
STRONGER = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)
GOOD = "three plain words"


# -- passwords -----------------------------------------------------------------------------------------------------


def test_the_shipped_parameters_are_those_of_rfc_9106_for_little_memory() -> None:
    stored = Passwords().hashed(GOOD)

    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_password_is_right_or_not_and_an_empty_one_is_never() -> None:
    passwords = Passwords(QUICK)
    stored = passwords.hashed(GOOD)

    assert passwords.check(stored, GOOD).is_right
    assert not passwords.check(stored, GOOD + "x").is_right
    assert not passwords.check("", GOOD).is_right
    assert not passwords.check("", "nobody has this password").is_right
    assert not passwords.check("rubbish", GOOD).is_right


def test_a_hash_of_other_parameters_is_renewed_at_the_login() -> None:
    stored = Passwords(QUICK).hashed(GOOD)

    checked = Passwords(STRONGER).check(stored, GOOD)

    assert checked.is_right
    assert checked.renewed is not None
    assert Passwords(STRONGER).check(checked.renewed, GOOD).renewed is None
    assert Passwords(STRONGER).check(stored, "wrong").renewed is None


@pytest.mark.parametrize("password", ["", "short", "x" * 257, "a" * 30, "anna12345678", "abababababababab"])
def test_what_is_easily_guessed_is_no_password(password: str) -> None:
    with pytest.raises(PasswordUnfit):
        check_fit(password, "anna")

    check_fit(GOOD, "anna")


# -- lock-out ------------------------------------------------------------------------------------------------------


def test_failures_in_a_row_lock_for_twice_as_long_each_time() -> None:
    assert [lock_s(count) for count in range(1, FREE)] == [0.0] * (FREE - 1)
    assert [lock_s(FREE + more) for more in range(4)] == [30.0, 60.0, 120.0, 240.0]
    assert lock_s(10_000) == LONGEST_S


def test_a_lock_ends_by_itself_and_the_next_failure_locks_longer() -> None:
    found = Failures()
    for _ in range(FREE):
        found = found.failed(100.0)

    assert found.wait_s(100.0) == 30.0
    assert found.wait_s(129.0) == 1.0
    assert found.wait_s(130.0) == 0.0
    assert found.failed(130.0).wait_s(130.0) == 60.0


def test_attempts_are_counted_by_key_forgotten_in_time_and_bounded() -> None:
    attempts = Attempts(free=2, kept=3)
    for key in ("a", "a", "b"):
        attempts.failed(key, 0.0)

    assert attempts.wait_s("a", 0.0) == 30.0
    assert attempts.wait_s("b", 0.0) == 0.0
    attempts.succeeded("a")
    assert attempts.wait_s("a", 0.0) == 0.0
    attempts.failed("b", FORGET_S + 1.0)
    assert attempts.wait_s("b", FORGET_S + 1.0) == 0.0
    for key in ("c", "d", "e"):
        attempts.failed(key, 0.0)
    assert len(attempts._found) == 3


def test_a_bucket_empties_at_once_and_fills_with_time() -> None:
    limit = RateLimit(per_s=2.0, burst=3.0, kept=2)

    assert [limit.take("a", 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limit.take("b", 10.0) == 0.0
    assert limit.take("a", 10.5) == 0.0
    assert limit.take("a", 10.5) == 0.5
    assert limit.take("a", 1000.0) == 0.0


# -- credentials ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CredentialKind))
def test_a_credential_is_known_again_by_its_hash_alone(kind: CredentialKind) -> None:
    made, other = credentials.make(kind), credentials.make(kind)

    shown = credentials.parse(kind, made.text)

    assert shown is not None
    assert shown.id == made.id
    assert shown.is_that(made.secret_sha256)
    assert not shown.is_that(other.secret_sha256)
    assert made.secret_sha256 not in made.text
    assert made.text not in repr(made)


@pytest.mark.parametrize("text", ["", "x", "mst_", "mst_abc.def", "mst_" + "a" * 12 + "." + "b" * 42, "é" * 60])
def test_what_has_no_shape_is_no_token(text: str) -> None:
    assert credentials.parse(CredentialKind.TOKEN, text) is None


def test_a_session_is_no_token() -> None:
    made = credentials.make(CredentialKind.SESSION)

    assert credentials.parse(CredentialKind.TOKEN, made.text) is None


# -- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "/login", "", "/a\\b", "/x\n", "/logout"]
)
def test_a_login_goes_on_within_this_page_alone(target: str) -> None:
    assert safe(target) == "/"


def test_a_login_goes_on_where_it_began() -> None:
    assert safe("/rollouts/digits-1?x=1") == "/rollouts/digits-1?x=1"


def test_what_a_claim_gives_is_written_in_a_word() -> None:
    assert parse_role("fleet-ops=operator") == ("fleet-ops", (Role.OPERATOR, ""))
    assert parse_role("berlin=operator:site=berlin") == ("berlin", (Role.OPERATOR, "site=berlin"))
    for wrong in ("fleet-ops", "=operator", "ops=king"):
        with pytest.raises(ValueError, match=r".+"):
            parse_role(wrong)


def test_an_issuer_beyond_this_machine_speaks_tls() -> None:
    with pytest.raises(OidcFailed, match="https"):
        Oidc(OidcConfig("http://id.example.org", "muster"))


def test_an_answer_of_another_login_or_too_late_is_refused_before_anybody_is_asked() -> None:
    now = [1000.0]
    oidc = Oidc(OidcConfig("http://127.0.0.1:9", "muster"), lambda: now[0])
    attempt = Attempt("state", "nonce", "verifier", "/", 1000.0)

    with pytest.raises(OidcFailed, match="another login"):
        oidc.finish(attempt, "another", "code", "http://127.0.0.1/login/oidc/callback")
    now[0] += LOGIN_S + 1.0
    with pytest.raises(OidcFailed, match="too long"):
        oidc.finish(attempt, "state", "code", "http://127.0.0.1/login/oidc/callback")
