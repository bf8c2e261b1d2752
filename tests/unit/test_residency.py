"""Which models stay in memory."""

from hypothesis import given
from hypothesis import strategies as st

from muster_agent.core.residency import (
    Asked,
    Effect,
    Event,
    Gone,
    Load,
    Loaded,
    LoadFailed,
    Presence,
    Residency,
    Unload,
    Unloaded,
    Used,
    advance,
)
from muster_shared.ids import ModelName

A, B, C = ModelName("a"), ModelName("b"), ModelName("c")


def after(residency: Residency, *events: Event) -> tuple[Residency, list[Effect]]:
    """Return the state and the effects of `events`, one a second from second 1 on."""
    all_effects: list[Effect] = []
    for second, event in enumerate(events, 1):
        residency, effects = advance(residency, event, float(second))
        all_effects += effects
    return residency, all_effects


def test_without_a_budget_everything_stays() -> None:
    state, effects = after(Residency(), Loaded(A, 10**12), Loaded(B, 10**12))

    assert effects == []
    assert state.held == 2 * 10**12


def test_a_new_model_sends_the_least_recently_used_away() -> None:
    _, effects = after(Residency(100), Loaded(A, 40), Loaded(B, 40), Used(A, 2.5), Loaded(C, 40))

    assert effects == [Unload(B)]


def test_as_many_go_as_are_in_the_way() -> None:
    state, effects = after(Residency(100), Loaded(A, 40), Loaded(B, 40), Loaded(C, 90))

    assert effects == [Unload(A), Unload(B)]
    assert state.held == 90


def test_a_request_brings_an_unloaded_model_back_once() -> None:
    state, _ = after(Residency(100), Loaded(A, 60), Loaded(B, 60))

    state, effects = after(state, Asked(A), Asked(A))

    assert effects == [Unload(B), Load(A)]
    assert state.presence(A) is Presence.LOADING


def test_a_pinned_model_is_never_in_the_way() -> None:
    state, effects = after(Residency(100, frozenset({A})), Loaded(A, 60), Loaded(B, 60), Loaded(C, 30))

    assert effects == [Unload(B)]
    assert state.presence(A) is Presence.LOADED


def test_a_model_larger_than_the_budget_is_served_alone() -> None:
    state, effects = after(Residency(100), Loaded(A, 40), Loaded(B, 500))

    assert effects == [Unload(A)]
    assert state.presence(B) is Presence.LOADED


def test_an_operator_unloads_also_what_is_pinned() -> None:
    state, effects = after(Residency(None, frozenset({A})), Loaded(A, 1), Unloaded(A), Unloaded(A))

    assert effects == [Unload(A)]
    assert state.held == 0


def test_a_failed_load_may_be_asked_for_again() -> None:
    state, effects = after(Residency(), Loaded(A, 1), Unloaded(A), Asked(A), LoadFailed(A), Asked(A))

    assert effects == [Unload(A), Load(A), Load(A)]
    assert state.presence(A) is Presence.LOADING


def test_what_is_gone_neither_counts_nor_comes_back() -> None:
    state, effects = after(Residency(100), Loaded(A, 90), Gone(A), Loaded(B, 90), Asked(A), Used(A, 9.0))

    assert effects == []
    assert state.presence(A) is None


NAMES = st.sampled_from([A, B, C, ModelName("d")])
EVENTS = st.one_of(
    st.builds(Loaded, NAMES, st.integers(-5, 120)),
    st.builds(LoadFailed, NAMES),
    st.builds(Used, NAMES, st.floats(0, 100)),
    st.builds(Asked, NAMES),
    st.builds(Unloaded, NAMES),
    st.builds(Gone, NAMES),
)


@given(st.lists(EVENTS, max_size=40), st.integers(0, 200), st.frozensets(NAMES, max_size=2))
def test_what_is_loaded_stays_within_the_budget_whatever_happens(
    events: list[Event], budget: int, pinned: frozenset[ModelName]
) -> None:
    state = Residency(budget, pinned)
    for second, event in enumerate(events):
        before = state
        state, effects = advance(state, event, float(second))

        unloaded = [effect.model for effect in effects if isinstance(effect, Unload)]
        by_budget = [name for name in unloaded if not (isinstance(event, Unloaded) and event.model == name)]
        assert not pinned & set(by_budget)
        assert event.model not in by_budget
        assert all(before.presence(name) is Presence.LOADED for name in unloaded)
        if isinstance(event, Loaded | Asked) and effects:
            # What is still over the budget could not be helped: it is wanted now, pinned, or on its way.
            could_go = [
                name
                for name, model in state.models.items()
                if model.presence is Presence.LOADED and name not in pinned and name != event.model
            ]
            assert state.held <= budget or not could_go
