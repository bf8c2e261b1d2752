"""What a release may do to the devices that get it, as rates: the scenarios that every policy is rehearsed against.

Values only; `device_model` turns them into what one device does.
"""

from dataclasses import dataclass
from typing import Literal

from muster_shared.errors import MusterError

BASE_RATE = 0.01
CONFINED_SHARE = 0.1  # Harm in one class is hardest to find where few devices have it; a tenth is the usual case.
SHOCK_RATE = 4.0
SHOCK_SLOWER = 0.3


class RehearsalRefused(MusterError):
    """A fleet, a scenario or an option that cannot be rehearsed; the message says what to write."""


@dataclass(frozen=True)
class Harm:
    """What the new release does to a device. Shares are 0..1."""

    rate: float
    """Treated devices that fail, those included that would have failed with the old release."""
    silent: float = 0.0
    """Treated devices that are never heard of again after the switch."""
    slower: float = 0.0
    """Relative rise of the p95 latency; 0.2 is a fifth slower."""
    disagreeing: float = 0.0
    """Treated devices whose trial disagrees more than the policy bears; counts only where the policy has a trial."""
    only_class: str | None = None
    """The only device class that is harmed; None: all."""
    fails: Literal["probation", "self_test"] = "probation"
    """Where a device that the release breaks finds out."""


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    harm: Harm
    base_rate: float = BASE_RATE
    """Devices that fail in a window with the old release: held-back controls, and treated devices too."""
    is_shocked: bool = False
    """From the second wave on all devices, treated or not, fail SHOCK_RATE times as often and are slower."""

    @property
    def is_harmless(self) -> bool:
        """Whether the release is as good as the old one, so that stopping it is wrong."""
        harm = self.harm
        return harm.rate <= self.base_rate and not harm.silent and harm.slower <= 0 and not harm.disagreeing

    def hits(self, device_class: str) -> bool:
        """Return whether the release harms devices of this class at all."""
        return self.harm.only_class in (None, device_class)

    @property
    def excess(self) -> float:
        """The chance that the release breaks a device that would have done well with the old one."""
        return max(0.0, (self.harm.rate - self.base_rate) / (1 - self.base_rate))

    @property
    def native_rate(self) -> float:
        """The chance that a treated device fails for reasons that are not the release's."""
        return min(self.base_rate, self.harm.rate)


def standard(base_rate: float, classes: dict[str, int], confined: str | None = None) -> tuple[Scenario, ...]:
    """Return the scenarios of a rehearsal without further wishes, the harmless one first.

    Args:
        classes: Devices of each class; harm in one class needs two of them.
        confined: That class; None: the one whose share comes closest to a tenth.
    """
    well = Harm(base_rate)
    worse = min(0.5, 5 * base_rate)
    found = [
        Scenario("good", "as good as the old one", well, base_rate),
        Scenario("failing", f"failures {percent(base_rate)} -> {percent(worse)}", Harm(worse), base_rate),
        Scenario("bricks", "40 % of the devices break", Harm(max(0.4, base_rate)), base_rate),
        Scenario("slower", "p95 latency +20 %", Harm(base_rate, slower=0.2), base_rate),
        Scenario("silent", "5 % fall silent", Harm(base_rate, silent=0.05), base_rate),
    ]
    if len(classes) > 1:
        total = sum(classes.values())
        chosen = confined or min(sorted(classes), key=lambda name: abs(classes[name] / total - CONFINED_SHARE))
        harm = Harm(base_rate, slower=0.5, only_class=chosen)
        found.insert(4, Scenario("one-class", f"p95 latency +50 % on {chosen} only", harm, base_rate))
    return tuple(found)


def shocked(base_rate: float) -> Scenario:
    """Return a harmless release during whose rollout something else befalls the whole fleet."""
    title = f"as good as the old one, but all fail {SHOCK_RATE:g}x as often from wave 2 on"
    return Scenario("shock", title, Harm(base_rate), base_rate, is_shocked=True)


def own(harm: Harm, base_rate: float) -> Scenario:
    """Return the scenario that an operator describes."""
    said = [f"failures {percent(base_rate)} -> {percent(harm.rate)}"] if harm.rate != base_rate else []
    said += [f"p95 latency {harm.slower:+.0%}".replace("%", " %")] if harm.slower else []
    said += [f"{percent(harm.silent)} fall silent"] if harm.silent else []
    said += [f"{percent(harm.disagreeing)} disagree"] if harm.disagreeing else []
    where = f" on {harm.only_class} only" if harm.only_class is not None and said else ""
    return Scenario("yours", (", ".join(said) or "no harm") + where, harm, base_rate)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
