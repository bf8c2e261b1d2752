"""ISO weeks in UTC: from Monday to Monday. Pure."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from muster_shared.errors import WireError

WEEK_S: Final = 7 * 86_400
DUE_S: Final = 6 * 3600
"""After a week has ended: Monday 06:00 UTC. By then mixers have closed its last hour."""
_WEEK = re.compile(r"(?P<year>20\d\d)-W(?P<week>\d\d)")


@dataclass(frozen=True, order=True)
class Week:
    """One week, such as 2026-W47."""

    year: int
    number: int

    @classmethod
    def of(cls, at: float) -> Self:
        """Return the week that the moment `at` is in."""
        year, number, _ = datetime.fromtimestamp(at, UTC).isocalendar()
        return cls(year, number)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises WireError: there is no such week."""
        found = _WEEK.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            datetime.fromisocalendar(int(found["year"]), int(found["week"]), 1)
        except ValueError as error:
            raise WireError(f"{text[:20]!r} is no week; write it as 2026-W47") from error
        return cls(int(found["year"]), int(found["week"]))

    @classmethod
    def due(cls, now: float) -> Self:
        """Return the newest week whose review is to be there at `now`."""
        return cls.of(now - DUE_S - WEEK_S)

    @property
    def begin(self) -> float:
        """Monday 00:00 UTC."""
        return datetime.fromisocalendar(self.year, self.number, 1).replace(tzinfo=UTC).timestamp()

    @property
    def end(self) -> float:
        return self.begin + WEEK_S

    @property
    def before(self) -> "Week":
        return Week.of((datetime.fromtimestamp(self.begin, UTC) - timedelta(days=3)).timestamp())

    def __str__(self) -> str:
        return f"{self.year}-W{self.number:02}"
