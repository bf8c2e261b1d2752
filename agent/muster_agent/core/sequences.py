"""The sequences of a stateful model: whose turn it is, and the state that goes from one request to the next.

    start ──> [running] ──finish──> idle ──continue──> [running] ... ──end──> forgotten
                 │                    └── idle_s without a request ──> forgotten
                 └ later requests of the sequence wait, in their order: one call in flight each

As in Triton's sequence extension, a request names `sequence_id`, `sequence_start` and `sequence_end`; a start begins
anew what is already there. The state itself is opaque; None stands for the zeros that a sequence begins with. Pure: it
runs nothing and reads no clock.
"""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from muster_shared.errors import MusterError

SequenceId = int | str
ID_CHARACTERS_MAX = 128
WAITING_MAX = 64
_NS = 1_000_000_000

C = TypeVar("C")
S = TypeVar("S")


class SequenceError(MusterError):
    """A request of a stateful model that cannot be taken; nothing was run."""


class SequenceInvalid(SequenceError):
    """The id is missing, or none that can be one."""


class SequenceUnknown(SequenceError):
    """It was not started, or is forgotten."""

    def __init__(self, sequence: SequenceId) -> None:
        super().__init__(
            f"sequence {sequence!r} is not under way: it was not started, has ended, was idle too long, or the release "
            "changed; send the next request with sequence_start"
        )
        self.sequence = sequence


class SequenceBusy(SequenceError):
    """As many requests as may wait for this sequence do."""

    def __init__(self, sequence: SequenceId, waiting: int) -> None:
        super().__init__(f"{waiting} requests of sequence {sequence!r} are waiting; send the next one after an answer")
        self.sequence = sequence
        self.retry_after_s = 1


class SequencesFull(SequenceError):
    """As many sequences as there may be are under way."""

    def __init__(self, sequences: int, retry_after_s: int) -> None:
        super().__init__(
            f"{sequences} sequences are under way, which is the limit; end one with sequence_end, "
            f"or try again in {retry_after_s} s"
        )
        self.sequences = sequences
        self.retry_after_s = retry_after_s


class _Sequence(Generic[C, S]):
    __slots__ = ("key", "open", "running", "state", "used_ns", "waiting")

    def __init__(self, key: SequenceId) -> None:
        self.key = key
        self.state: S | None = None
        self.running = False
        self.open = True  # Once everything that waits has run; a request after an accepted end needs a start.
        self.waiting: deque[tuple[C, bool]] = deque()  # (call, whether it starts anew)
        self.used_ns = 0


class Turn(Generic[C, S]):
    """A call that runs now, with the state that it begins with. It is given back with `Sequences.finish`, once."""

    __slots__ = ("_sequence", "call", "state")

    def __init__(self, call: C, state: S | None, sequence: _Sequence[C, S]) -> None:
        self.call = call
        self.state = state
        self._sequence = sequence


class Sequences(Generic[C, S]):
    """Those of one served release, on one loop. C: what a call is; S: what the state is."""

    def __init__(self, sequences_max: int, idle_s: float, waiting_max: int = WAITING_MAX) -> None:
        """
        Args:
            sequences_max: Under way at once, >= 1.
            idle_s: One without a request for as long is forgotten.
            waiting_max: Requests of one sequence behind the one that runs.
        """
        self._sequences_max = sequences_max
        self._idle_ns = int(idle_s * _NS)
        self._waiting_max = waiting_max
        self._sequences: OrderedDict[SequenceId, _Sequence[C, S]] = OrderedDict()  # The longest unused first.

    def __len__(self) -> int:
        return len(self._sequences)

    def submit(
        self, key: SequenceId, call: C, now_ns: int, *, starts: bool = False, ends: bool = False
    ) -> Turn[C, S] | None:
        """Take a request; return its turn, or None when it waits for the one before it (`finish` returns its turn).

        Raises:
            SequenceInvalid: `key` is not an id: 0, empty or too long.
            SequenceUnknown: it does not start, and nothing is under way under `key`.
            SequenceBusy, SequencesFull: there is no room; try again.
        """
        if not (0 < len(key) <= ID_CHARACTERS_MAX if isinstance(key, str) else key > 0):
            raise SequenceInvalid(
                "this model keeps a state from request to request: send a sequence_id, a positive number or a text of "
                f"up to {ID_CHARACTERS_MAX} characters, and sequence_start with the first request"
            )
        self.forget_idle(now_ns)
        sequence = self._sequences.get(key)
        if not starts and (sequence is None or not sequence.open):
            raise SequenceUnknown(key)
        if sequence is None:
            if len(self._sequences) >= self._sequences_max:
                raise SequencesFull(len(self._sequences), self._retry_after_s(now_ns))
            sequence = self._sequences[key] = _Sequence(key)
        elif len(sequence.waiting) >= self._waiting_max:
            raise SequenceBusy(key, len(sequence.waiting))
        sequence.waiting.append((call, starts))
        sequence.open = not ends
        self._used(sequence, now_ns)
        return None if sequence.running else self._next(sequence)

    def finish(self, turn: Turn[C, S], state: S | None, now_ns: int) -> Turn[C, S] | None:
        """Take back a turn with the state after it; return the next turn of the sequence, if one waits.

        A call that failed or was not run gives `turn.state` back: its sequence stands where it was, and the caller may
        send the same request again.
        """
        sequence = turn._sequence
        sequence.running = False
        sequence.state = state
        self._used(sequence, now_ns)
        if sequence.waiting:
            return self._next(sequence)
        if not sequence.open:
            del self._sequences[sequence.key]
        return None

    def forget_idle(self, now_ns: int) -> int:
        """Forget the sequences that were idle too long; return how many. None that runs or waits is."""
        idle = []
        for sequence in self._sequences.values():
            if sequence.running:
                continue
            if now_ns - sequence.used_ns < self._idle_ns:
                break
            idle.append(sequence.key)
        for key in idle:
            del self._sequences[key]
        return len(idle)

    def _next(self, sequence: _Sequence[C, S]) -> Turn[C, S]:
        call, starts = sequence.waiting.popleft()
        if starts:
            sequence.state = None
        sequence.running = True
        return Turn(call, sequence.state, sequence)

    def _used(self, sequence: _Sequence[C, S], now_ns: int) -> None:
        sequence.used_ns = now_ns
        self._sequences.move_to_end(sequence.key)

    def _retry_after_s(self, now_ns: int) -> int:
        oldest = next(iter(self._sequences.values()))
        return max(1, -(-(oldest.used_ns + self._idle_ns - now_ns) // _NS))
