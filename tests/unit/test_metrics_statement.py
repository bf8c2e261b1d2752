"""The privacy statement: it follows from the parameters in force, and tells where a mixer does less."""

from msgspec.structs import replace

from muster_controller.core.metrics.statement import ReleaseTerms, markdown, statement
from muster_controller.mixer.accounting import noise_sigma, release_nano
from muster_shared.metrics import DELTA, K_MIN, RHO_DAY, WEIGHTS, Budget, Kind, MixerState, eps, sigma

NOW = 1_800_000_000.0
HONEST = MixerState(
    mixer="mixer-a",
    sent_at=NOW,
    key="0123456789abcdef",
    cohorts=(0,),
    delta=DELTA,
    eps_day=eps(RHO_DAY),
    eps_30_days=eps(30 * RHO_DAY),
    k_min=K_MIN,
)


def test_every_kind_is_explained_with_its_noise_and_all_of_them_make_up_the_budget() -> None:
    found = statement("north", NOW, [], [])

    assert {each.kind for each in found.kinds} == set(Kind) == set(WEIGHTS)
    assert abs(sum(each.rho for each in found.kinds) * found.releases_a_day - RHO_DAY) < 1e-9
    text = markdown(found)
    assert all(
        f"| {each.kind.value} | {each.what} | {each.sigma_devices:.1f} devices |" in text for each in found.kinds
    )


def test_what_no_release_allows_is_said_to_stay_on_the_device() -> None:
    text = markdown(statement("north", NOW, [ReleaseTerms("digits", "1.0.0", ())], []))

    assert "No release allows anything" in text
    assert "No mixer has reported" in text


def test_releases_are_listed_with_what_they_allow() -> None:
    releases = [ReleaseTerms("digits", "1.0.0", ()), ReleaseTerms("digits", "1.1.0", (Kind.CLASSES, Kind.DRIFT))]

    text = markdown(statement("north", NOW, releases, []))

    assert "- digits 1.1.0: classes, drift" in text
    assert "- of 1 other releases: nothing" in text


def test_a_mixer_that_keeps_its_promise_has_no_problem() -> None:
    (mixer,) = statement("north", NOW, [], [(NOW, HONEST)]).mixers

    assert mixer.problems == ()


def test_a_mixer_that_does_less_than_is_promised_is_told_of() -> None:
    weak = replace(HONEST, k_min=5, eps_day=9.0, budgets=(Budget(day=20_000, rho_spent=0.2, rho_budget=0.1),))

    found = statement("north", NOW, [], [(NOW, weak)])

    assert len(found.mixers[0].problems) == 3
    assert markdown(found).count("Not as promised") == 3


def test_the_noise_of_our_own_mixer_is_as_much_as_is_promised() -> None:
    drawn = {kind: float(noise_sigma(kind, release_nano(RHO_DAY))) for kind in Kind}

    assert all(drawn[kind] >= sigma(kind) for kind in Kind)
