"""Known vulnerabilities of what the lock installs, by pip-audit: a part of `make check`.

    python deploy/supply_chain/audit.py

A finding fails unless `ignored.toml` says why not, and until when. Without the vulnerability service nothing was
audited: that is said and fails nothing, or nobody could check a change on a train. What was not asked is never clean.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
IGNORED = Path(__file__).parent / "ignored.toml"
PROBE = "cryptography"
"""One package that the service surely knows: it alone is asked for first, so that being offline costs little."""
TIMEOUT_S = 300.0
_UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Max retries", "ServiceError", "Failed to connect")


@dataclass(frozen=True)
class Vulnerability:
    package: str
    version: str
    id: str
    aliases: tuple[str, ...]
    fixed_in: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What pip-audit found out."""

    audited: int
    skipped: tuple[str, ...]
    """Packages that the service did not know."""
    vulnerabilities: tuple[Vulnerability, ...]


@dataclass(frozen=True)
class Ignored:
    id: str
    package: str
    reason: str
    until: date


def parse_answer(raw: str) -> Answer:
    """Return what pip-audit's JSON says. Raises ValueError, KeyError: it says something else."""
    audited, skipped, found = 0, [], []
    for each in json.loads(raw)["dependencies"]:
        if "skip_reason" in each:
            skipped.append(each["name"])
            continue
        audited += 1
        for one in each["vulns"]:
            aliases, fixed = tuple(one.get("aliases", ())), tuple(one.get("fix_versions", ()))
            found.append(Vulnerability(each["name"], each["version"], one["id"], aliases, fixed))
    return Answer(audited, tuple(skipped), tuple(found))


def parse_ignored(text: str) -> tuple[Ignored, ...]:
    """Return the entries of `ignored.toml`. Raises ValueError: one lacks its reason, or its date."""
    entries = tomllib.loads(text).get("ignored", [])
    found = []
    for each in entries:
        until = each.get("until")
        if (
            not each.get("id")
            or not each.get("package")
            or not str(each.get("reason", "")).strip()
            or type(until) is not date
        ):
            raise ValueError(f"ignored.toml: {each} needs id, package, a reason and a date (until = 2026-12-31)")
        found.append(Ignored(each["id"], each["package"], each["reason"], until))
    return tuple(found)


def judge(answer: Answer, ignored: Sequence[Ignored], today: date) -> list[str]:
    """Return what fails the check, one line each."""
    said: list[str] = []
    for one in answer.vulnerabilities:
        entry = next((i for i in ignored if i.package == one.package and i.id in (one.id, *one.aliases)), None)
        if entry is None:
            cure = f"fixed in {', '.join(one.fixed_in)}: raise it and `make lock`" if one.fixed_in else "not fixed yet"
            said.append(f"{one.package} {one.version}: {one.id} ({', '.join(one.aliases) or 'no alias'}); {cure}")
        elif entry.until < today:
            said.append(f"{one.package} {one.version}: {one.id} was ignored until {entry.until}; look at it again")
    return said


def ask(lock: Path) -> Answer | str:
    """Return what the service says of `lock`, or why it could not be asked. Raises RuntimeError: pip-audit failed."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:.0f} s"
    try:
        return parse_answer(done.stdout)
    except (ValueError, KeyError) as error:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        if any(word in done.stderr for word in _UNREACHABLE):
            return last[:200]
        raise RuntimeError(f"pip-audit ended with {done.returncode}: {last[:500]}") from error


def main() -> int:
    lock = ROOT / "requirements.lock"
    ignored = parse_ignored(IGNORED.read_text(encoding="utf-8"))
    pin = next(
        line.split()[0] for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith(f"{PROBE}==")
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as probe:
        probe.write(f"{pin}\n")
        probe.flush()
        first = ask(Path(probe.name))
    answer = first if isinstance(first, str) or not first.audited else ask(lock)
    if isinstance(answer, str) or not answer.audited:
        why = answer if isinstance(answer, str) else f"it does not know {PROBE}"
        print(f"vulnerabilities: NOT AUDITED, the service cannot be reached ({why}); run `make audit` where it can")
        return 0
    said = judge(answer, ignored, datetime.now(UTC).date())
    for line in said:
        print(f"vulnerability: {line}", file=sys.stderr)
    unknown = f"; not known to the service: {', '.join(answer.skipped)}" if answer.skipped else ""
    print(f"vulnerabilities: {len(said)} in {answer.audited} packages, {len(ignored)} ignored{unknown}")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
