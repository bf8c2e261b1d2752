"""The cache of answers: which inputs are the same, what it holds at most, and what goes first."""

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.answer_cache import ENTRY_BYTES, AnswerCache, key

RAW = st.binary(max_size=24)
INPUTS = st.lists(st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 3)), RAW), min_size=1, max_size=3)


def key_of(inputs: list[tuple[tuple[int, int], bytes]], rows: int = 1) -> bytes:
    return key([shape for shape, _ in inputs], [raw for _, raw in inputs], rows)


@given(INPUTS, INPUTS, st.integers(1, 2), st.integers(1, 2))
@settings(deadline=None)
def test_two_requests_have_one_key_only_if_they_are_the_same(
    one: list[tuple[tuple[int, int], bytes]], other: list[tuple[tuple[int, int], bytes]], rows: int, other_rows: int
) -> None:
    assert (key_of(one, rows) == key_of(other, other_rows)) == ((one, rows) == (other, other_rows))


def test_where_the_bytes_lie_does_not_matter() -> None:
    whole = bytearray(b"headabcd")

    assert key([(4,)], [memoryview(whole)[4:]]) == key([(4,)], [b"abcd"])


def strings(*texts: bytes) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def test_strings_that_are_cut_elsewhere_are_other_strings() -> None:
    one, other, again = (key([(2,)], [strings(*texts)]) for texts in ((b"ab", b"c"), (b"a", b"bc"), (b"ab", b"c")))

    assert one != other
    assert one == again


def test_an_answer_is_found_again_and_both_outcomes_are_counted() -> None:
    cache: AnswerCache[str] = AnswerCache(10_000)
    cache.put(b"k", "answer", 6)

    found, missing = cache.get(b"k"), cache.get(b"other")

    assert (found, missing) == ("answer", None)
    counts = cache.counts()
    assert (counts.hits, counts.misses, counts.entries, counts.size_bytes) == (1, 1, 1, 6 + ENTRY_BYTES)


def test_what_is_too_large_by_itself_is_not_kept_and_pushes_nothing_out() -> None:
    cache: AnswerCache[str] = AnswerCache(ENTRY_BYTES + 10)
    cache.put(b"k", "small", 10)

    cache.put(b"large", "large", 11)

    assert cache.get(b"k") == "small"
    assert cache.get(b"large") is None


def test_the_longest_unused_goes_first() -> None:
    cache: AnswerCache[str] = AnswerCache(10_000, entries_max=2)
    cache.put(b"one", "1", 1)
    cache.put(b"two", "2", 1)
    cache.get(b"one")

    cache.put(b"three", "3", 1)

    assert cache.get(b"one") == "1"
    assert cache.get(b"two") is None


def test_no_room_at_all_keeps_nothing() -> None:
    cache: AnswerCache[str] = AnswerCache(0)

    cache.put(b"k", "", 0)

    assert cache.counts().entries == 0


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 600)), max_size=80),
    st.integers(0, 2000),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_it_holds_what_a_plain_list_of_the_latest_would(
    steps: list[tuple[bool, int, int]], bytes_max: int, entries_max: int
) -> None:
    cache: AnswerCache[int] = AnswerCache(bytes_max, entries_max)
    model: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    for number, (puts, name, size) in enumerate(steps):
        k = b"%d" % name
        if puts:
            cache.put(k, number, size)
            model.pop(k, None)
            if size + ENTRY_BYTES <= bytes_max:
                model[k] = (number, size + ENTRY_BYTES)
            while sum(size for _, size in model.values()) > bytes_max or len(model) > entries_max:
                model.popitem(last=False)
        else:
            expected = model.get(k)
            assert cache.get(k) == (expected[0] if expected else None)
            if expected:
                model.move_to_end(k)
        counts = cache.counts()
        assert counts.entries == len(model) <= entries_max
        assert counts.size_bytes == sum(size for _, size in model.values()) <= bytes_max
