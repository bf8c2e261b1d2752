"""What a check finds, and how checks are run: side by side, each within its time."""

import threading
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

Verdict = Literal["ok", "warn", "fail"]
CHECK_S = 30.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report."""

    check: str
    verdict: Verdict
    said: str
    """What is so."""
    todo: str = ""
    """What to do about it; empty: nothing."""


Check = Callable[[], Finding]


def ok(check: str, said: str) -> Finding:
    return Finding(check=check, verdict="ok", said=said)


def warn(check: str, said: str, todo: str) -> Finding:
    return Finding(check=check, verdict="warn", said=said, todo=todo)


def fail(check: str, said: str, todo: str) -> Finding:
    return Finding(check=check, verdict="fail", said=said, todo=todo)


def examine(checks: Mapping[str, Check], within_s: float = CHECK_S) -> list[Finding]:
    """Return what each check finds, in their order; one that hangs or falls over is a finding as well."""
    found: dict[str, Finding] = {}

    def one(name: str, check: Check) -> None:
        try:
            found[name] = check()
        except Exception as error:  # A check that falls over must not hide what the others find.
            found[name] = fail(name, f"it could not be looked at: {type(error).__name__}: {error}", "report this")

    threads = {
        name: threading.Thread(target=one, args=(name, check), daemon=True, name=f"check-{name}")
        for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    findings = []
    for name, thread in threads.items():
        thread.join(within_s)  # They run side by side: those after the first find theirs done.
        late = fail(name, f"no answer within {within_s:g} s", "look at what it waits for: disk, name server, network")
        findings.append(found.get(name, late))
    return findings


def lasting(seconds: float) -> str:
    """Return a length of time for people."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
