"""What happened in a world, line by line, and its digest: the same seed must give the same one."""

from collections.abc import Iterator
from hashlib import blake2b

from muster_simulator.clock import Timeline

Fact = str | int | float | bool | None


class History:
    """Lines as facts; they are only made into text when somebody reads them."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._start = timeline.now
        self._lines: list[tuple[float, str, str, tuple[Fact, ...]]] = []

    def add(self, who: str, what: str, *facts: Fact) -> None:
        self._lines.append((self._timeline.now - self._start, who, what, facts))

    def __len__(self) -> int:
        return len(self._lines)

    def text(self, last: int | None = None) -> Iterator[str]:
        """Yield the last lines (or all), such as `  41.250  d03         committed  v=1.0.1`."""
        for moment, who, what, facts in self._lines if last is None else self._lines[-last:]:
            yield f"{moment:10.3f}  {who:<12}{what:<22}{' '.join(_word(fact) for fact in facts)}".rstrip()

    def digest(self) -> str:
        """Return the digest of everything that happened, with every moment to the last bit."""
        running = blake2b(digest_size=16)
        for line in self._lines:
            running.update(repr(line).encode())
        return running.hexdigest()


def _word(fact: Fact) -> str:
    return f"{fact:.3f}" if isinstance(fact, float) else str(fact)
