"""One file over a line that loses, repeats, reorders and corrupts: it arrives whole, and nothing false is written."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.transfer import BAD_CHUNKS_MAX, QUIET_S, QUIET_S_MAX, WINDOW_CHUNKS, Arrival, arrive, ask, begin
from muster_shared.bundle import BundleFile, describe_file

CHUNK = 1024


def test_a_window_is_asked_for_and_the_next_only_when_it_is_here() -> None:
    raw, file = some_file(WINDOW_CHUNKS + 2)

    transfer, first = begin(file, (), 0.0)
    for index in range(WINDOW_CHUNKS):
        assert ask(transfer, 0.1)[1] is None
        transfer, _ = arrive(transfer, index, chunk(raw, index), 0.1)
    transfer, second = ask(transfer, 0.1)

    assert first is not None
    assert first.missing == tuple(range(WINDOW_CHUNKS))
    assert second is not None
    assert second.missing == (WINDOW_CHUNKS, WINDOW_CHUNKS + 1)


def test_a_corrupt_chunk_is_refused_and_still_missing() -> None:
    _, file = some_file(3)
    transfer, _ = begin(file, (), 0.0)

    transfer, arrival = arrive(transfer, 1, bytes(CHUNK), 0.1)
    _, want = ask(transfer, QUIET_S + 0.2)

    assert arrival is Arrival.CORRUPT
    assert want is not None
    assert 1 in want.missing


def test_a_source_that_goes_on_lying_is_given_up() -> None:
    _, file = some_file(3)
    transfer, _ = begin(file, (), 0.0)

    arrivals = []
    for _ in range(BAD_CHUNKS_MAX):
        transfer, arrival = arrive(transfer, 0, b"lies", 0.1)
        arrivals.append(arrival)

    assert arrivals == [Arrival.CORRUPT] * (BAD_CHUNKS_MAX - 1) + [Arrival.LYING]


def test_a_silent_source_is_asked_ever_less_often_but_for_ever() -> None:
    _, file = some_file(3)
    transfer, _ = begin(file, (), 0.0)

    gaps, now = [], 0.0
    for _ in range(12):
        gaps.append(transfer.quiet_until - now)
        now = transfer.quiet_until
        transfer, want = ask(transfer, now)
        assert want is not None

    assert gaps == sorted(gaps)
    assert gaps[-1] == QUIET_S_MAX


def test_a_file_without_chunk_digests_takes_what_has_the_right_length() -> None:
    file = BundleFile(path="bundle.json", sha256=some_file(1)[1].sha256, length=CHUNK + 5, chunk_bytes=CHUNK)
    transfer, _ = begin(file, (), 0.0)

    transfer, first = arrive(transfer, 0, bytes(CHUNK), 0.0)
    transfer, wrong = arrive(transfer, 1, bytes(6), 0.0)
    transfer, last = arrive(transfer, 1, bytes(5), 0.0)

    assert (first, wrong, last) == (Arrival.WRITE, Arrival.CORRUPT, Arrival.WRITE)
    assert transfer.complete


def test_what_is_already_here_is_not_asked_for() -> None:
    _, file = some_file(5)

    transfer, want = begin(file, (0, 2, 4), 0.0)
    nothing_left, no_want = begin(file, (0, 1, 2, 3, 4), 0.0)

    assert want is not None
    assert want.missing == (1, 3)
    assert transfer.bytes_here == 3 * CHUNK
    assert nothing_left.complete
    assert no_want is None


@given(
    count=st.integers(1, 300),
    tail=st.integers(1, CHUNK),
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.9),
    noise=st.floats(0, 0.02),
    have=st.sets(st.integers(0, 299)),
)
@settings(max_examples=60, deadline=None)
def test_any_line_delivers_the_file_in_the_end(
    count: int, tail: int, seed: int, loss: float, noise: float, have: set[int]
) -> None:
    rng = random.Random(seed)
    raw, file = some_file(count, tail)
    here = {index for index in have if index < count}
    written = {index: chunk(raw, index) for index in here}
    transfer, want = begin(file, tuple(sorted(here)), 0.0)
    now = 0.0

    for _ in range(4000):
        if transfer.complete:
            break
        assert want is None or len(want.missing) <= WINDOW_CHUNKS
        answers = [] if want is None else [index for index in want.missing if rng.random() > loss]
        answers += [rng.randrange(2 * count) for _ in range(2)]  # What other devices asked for.
        rng.shuffle(answers)
        for index in answers:
            content = chunk(raw, index) if index < count else bytes(CHUNK)
            if rng.random() < noise and transfer.bad_chunks < BAD_CHUNKS_MAX - 2:
                content = b"\xff" + content[1:] if content[:1] != b"\xff" else b"\0" + content[1:]
            transfer, arrival = arrive(transfer, index, content, now)
            if arrival is Arrival.WRITE:
                assert index not in written
                written[index] = content
            assert arrival is not Arrival.LYING
        now = max(now, transfer.quiet_until)
        transfer, want = ask(transfer, now)

    assert b"".join(written[index] for index in sorted(written)) == raw
    assert transfer.have == (1 << count) - 1


def some_file(count: int, tail: int = CHUNK) -> tuple[bytes, BundleFile]:
    raw = random.Random(count).randbytes((count - 1) * CHUNK + tail)
    return raw, describe_file("model.onnx", raw, CHUNK)


def chunk(raw: bytes, index: int) -> bytes:
    return raw[index * CHUNK : (index + 1) * CHUNK]
