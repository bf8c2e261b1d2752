"""The attacks of the TUF and Uptane lists on an agent as it ships: each is refused by its name, what serves goes on
serving, and an honest update works afterwards.

That each of these tests would notice is shown in `test_undefended`.
"""

import pytest

from attack import attacks
from attack.attacks import Attempt, under
from attack.stage import Stage
from muster_shared.messages import Refusal, Step

pytestmark = pytest.mark.broker
Struck = tuple[Stage, Attempt]
RECOVERED = 5.0


# -- arbitrary and wrong software --------------------------------------------------------------------------------------


@under(attacks.arbitrary_software)
def test_attack_arbitrary_software_is_no_target_of_the_release_keys(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.NOT_A_TARGET)
    assert_held(stage, attempt)


@under(attacks.swapped_bytes)
def test_attack_arbitrary_software_under_the_name_of_an_honest_release_is_tampered(struck: Struck) -> None:
    stage, attempt = struck

    assert failure(stage, attempt) is Refusal.TAMPERED
    assert_held(stage, attempt)


@under(attacks.wrong_hardware)
def test_attack_wrong_software_for_other_hardware_is_refused(struck: Struck) -> None:
    stage, attempt = struck

    assert failure(stage, attempt) is Refusal.WRONG_HARDWARE
    assert_held(stage, attempt)


@under(attacks.wrong_model)
def test_attack_wrong_software_by_the_release_keys_of_another_model_is_no_target(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.NOT_A_TARGET)
    assert_held(stage, attempt, new_keys=True)


# -- rollback ----------------------------------------------------------------------------------------------------------


@under(attacks.rollback_release)
def test_attack_rollback_of_a_release_that_was_revoked_is_refused(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.NOT_A_TARGET)
    assert_held(stage, attempt)


@under(attacks.rollback_counter)
def test_attack_rollback_of_the_assignment_counter_is_a_replay(struck: Struck) -> None:
    stage, attempt = struck

    assert stage.wait_for_refusal(Refusal.REPLAYED).counter == 1
    assert_held(stage, attempt)


@under(attacks.rollback_metadata)
def test_attack_rollback_of_metadata_is_a_replay(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.REPLAYED)
    assert_held(stage, attempt)


@under(attacks.mix_and_match)
def test_attack_mix_and_match_of_old_and_new_metadata_is_untrusted(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_UNTRUSTED)
    assert_held(stage, attempt)


# -- freeze ------------------------------------------------------------------------------------------------------------


@under(attacks.freeze)
def test_attack_freeze_is_over_when_the_timestamp_expires(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_EXPIRED)
    assert_held(stage, attempt)


@under(attacks.freeze_behind_a_forgery)
def test_attack_freeze_does_not_hide_behind_forged_metadata(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_EXPIRED)
    assert_held(stage, attempt)


@under(attacks.indefinite_freeze)
def test_attack_indefinite_freeze_with_the_timestamp_key_is_over_when_the_snapshot_expires(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_EXPIRED)
    assert_held(stage, attempt, new_keys=True)


@under(attacks.indefinite_freeze_of_everything)
def test_attack_indefinite_freeze_with_all_online_keys_is_over_when_the_releases_expire(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.NOT_A_TARGET)
    assert_held(stage, attempt, new_keys=True)


@under(attacks.fast_forward)
def test_attack_fast_forward_is_undone_by_new_online_keys(struck: Struck) -> None:
    stage, attempt = struck

    assert_held(stage, attempt)


@under(attacks.fast_forward_counter)
def test_attack_fast_forward_of_the_assignment_counter_is_undone_by_new_keys(struck: Struck) -> None:
    stage, attempt = struck

    assert attempt.release is not None
    stage.wait_for_step(attempt.release, Step.COMMITTED)
    assert_held(stage, attempt, before=attacks.NEWER)


# -- what is sent ------------------------------------------------------------------------------------------------------


@under(attacks.endless_data)
def test_attack_endless_data_is_cut_at_what_was_signed(struck: Struck) -> None:
    stage, attempt = struck

    assert attempt.release is not None
    stage.wait_for_step(attempt.release, Step.COMMITTED)
    assert_held(stage, attempt, before=attacks.NEWER)


@under(attacks.slow_retrieval)
def test_attack_slow_retrieval_ends_at_the_deadline_of_the_update(struck: Struck) -> None:
    stage, attempt = struck

    assert failure(stage, attempt) is Refusal.TIMED_OUT
    assert_held(stage, attempt)


@under(attacks.drop_request)
def test_attack_drop_request_is_outlasted_by_asking_again(struck: Struck) -> None:
    stage, attempt = struck

    assert attempt.release is not None
    stage.wait_for_step(attempt.release, Step.COMMITTED)
    assert_held(stage, attempt, before=attacks.NEWER)


@under(attacks.partial_bundle)
def test_attack_partial_bundle_never_serves(struck: Struck) -> None:
    stage, attempt = struck

    assert failure(stage, attempt) is Refusal.TIMED_OUT
    assert_held(stage, attempt)


@under(attacks.eavesdrop)
def test_attack_eavesdrop_hears_no_input_through_an_update_a_refusal_and_a_twin(struck: Struck) -> None:
    stage, attempt = struck
    twins = len(stage.twins)
    attacks.rollback_counter(stage)
    stage.wait_for_refusal(Refusal.REPLAYED)

    stage.wait(lambda: len(stage.twins) > twins)
    assert len({heard.topic for heard in stage.heard}) > len(("twin", "event", "presence", "want", "chunk"))
    assert_held(stage, attempt, before=attacks.NEWER)


@under(attacks.forged_messages)
def test_attack_forged_messages_of_every_parser_of_the_agent_stop_nothing(struck: Struck) -> None:
    stage, attempt = struck

    assert attempt.release is not None
    stage.wait_for_step(attempt.release, Step.COMMITTED)
    assert_held(stage, attempt, before=attacks.NEWER)
    assert "Traceback" not in stage.log()


# -- stolen things -----------------------------------------------------------------------------------------------------


@under(attacks.stolen_release_key)
def test_attack_key_compromise_of_one_release_key_is_below_the_threshold(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_UNTRUSTED)
    assert_held(stage, attempt, new_keys=True)


@under(attacks.stolen_root_key)
def test_attack_key_compromise_of_one_root_key_is_below_the_threshold(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_UNTRUSTED)
    assert_held(stage, attempt, new_keys=True)


@under(attacks.stolen_controller_ships)
def test_attack_stolen_controller_cannot_ship_a_model(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.METADATA_UNTRUSTED)
    assert_held(stage, attempt, new_keys=True)


@under(attacks.stolen_controller_brings_back)
def test_attack_stolen_controller_cannot_bring_back_what_is_revoked(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.REPLAYED)
    assert_held(stage, attempt, new_keys=True)


@under(attacks.forged_assignment)
def test_attack_stolen_broker_cannot_choose_among_signed_releases(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.FORGED)
    assert_held(stage, attempt)


@under(attacks.replay_to_another_device)
def test_attack_replay_to_another_device_is_refused(struck: Struck) -> None:
    stage, attempt = struck

    stage.wait_for_refusal(Refusal.OTHER_DEVICE)
    assert_held(stage, attempt)


# ----------------------------------------------------------------------------------------------------------------------


def failure(stage: Stage, attempt: Attempt) -> Refusal | None:
    """Return why the update that the attack is about failed, once it has."""
    assert attempt.release is not None
    return stage.wait_for_step(attempt.release, Step.FAILED).refusal


def assert_held(stage: Stage, attempt: Attempt, *, before: float | None = None, new_keys: bool = False) -> None:
    """Assert that the attacker has nothing, that what served serves, and that an honest update comes through.

    Args:
        new_keys: Online keys were stolen: the operator makes new ones first, as the runbook says.
    """
    assert not attempt.reached()
    assert stage.factor() == (attempt.before if before is None else before)
    stage.answer_want = stage.send_chunks
    if new_keys:
        stage.take_new_online_keys()
    else:
        stage.renew_timestamp()
    stage.update(stage.works.release("9.0.0", factor=RECOVERED))
    stage.wait(lambda: stage.factor() == RECOVERED)
    assert not attempt.reached()
