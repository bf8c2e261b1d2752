"""The device's certificate and keys, and the trust root, as they lie on the disk. Nobody is asked."""

import json
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from muster_agent.errors import IdentityError
from muster_agent.identity import key_uri
from muster_agent.identity.folder import IdentityFolder
from muster_agent.install.doctor.finding import Finding, fail, lasting, ok, warn
from muster_agent.io.trust_state import load

SOON_S = 14 * 86400.0
_RENEW = "run `muster-agent renew`, and look why the agent did not"
_FROZEN = "the controller refreshes it: see whether it runs and whether this device reaches the broker"


def check_certificate(folder: IdentityFolder, key: str, now: float) -> Finding:
    """Look at the certificate's dates, whether its key fits, and who may read the keys."""
    name = "certificate"
    try:
        enrolled = folder.current()
        if enrolled is None:
            return fail(name, f"{folder.path} holds none", "run `muster-agent install` with a token")
        leaf = x509.load_pem_x509_certificate(folder.certificate_path.read_bytes())
        private = serialization.load_pem_private_key(folder.session_key_path.read_bytes(), None)
    except (IdentityError, OSError, ValueError, TypeError) as error:
        return fail(name, f"it cannot be read: {error}", "run `muster-agent renew`, or enrol again with a new token")
    if leaf.public_key() != private.public_key():
        return fail(name, "key and certificate do not fit", _RENEW)
    if key == key_uri.FILE and not folder.key_path.is_file():
        return fail(name, f"the identity key {folder.key_path} is gone", "revoke the device, and enrol it anew")
    kept = [folder.path, folder.session_key_path, *([folder.key_path] if key == key_uri.FILE else [])]
    open_to_others = [str(path) for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to_others:
        todo = f"chmod go= {' '.join(open_to_others)}; who could read the keys has them: renew, or enrol anew"
        return fail(name, f"others may read {', '.join(open_to_others)}", todo)
    return judge_dates(
        leaf.not_valid_before_utc.timestamp(), enrolled.renew_at, leaf.not_valid_after_utc.timestamp(), now
    )


def judge_dates(begins_at: float, renew_at: float, expires_at: float, now: float) -> Finding:
    """Return the finding for a certificate; all in Unix seconds."""
    name = "certificate"
    if now < begins_at:
        return fail(name, f"it begins only in {lasting(begins_at - now)}", "set this device's clock")
    if now >= expires_at:
        return fail(name, f"it is over since {lasting(now - expires_at)}", _RENEW)
    said = f"it is good for {lasting(expires_at - now)}"
    if now > renew_at + (expires_at - renew_at) / 2:
        return warn(name, f"{said}, and its renewal is overdue", _RENEW)
    return ok(name, said)


def check_trust(trust_folder: Path, bootstrap: Path | None, now: float) -> Finding:
    """Look at what the device verified last, or, before the first time, at the root that it begins with."""
    name = "trust"
    files = dict(load(trust_folder).files)
    verified = bool(files)
    if not verified and bootstrap is not None:
        try:
            files = {"root.json": bootstrap.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            return fail(name, f"{bootstrap} cannot be read: {error}", "run `muster-agent renew`, or set bootstrap_root")
    if not files:
        return fail(
            name, "there is no trust root", "run `muster trust push` on the controller, `muster-agent renew` here"
        )
    dates = {role: date for role, text in files.items() if (date := _expiry(text)) is not None}
    return judge_trust(dates, now, verified=verified)


def judge_trust(dates: Mapping[str, tuple[int, float]], now: float, *, verified: bool) -> Finding:
    """Return the finding.

    Args:
        dates: Version and expiry (Unix seconds) by file, such as `root.json` or `root_history/2.root.json`.
    """
    name = "trust"
    roots = [date for file, date in dates.items() if file.endswith("root.json")]
    if not roots:
        return fail(name, "there is no trust root that parses", "run `muster-agent renew`, or set bootstrap_root")
    version, root_until = max(roots)
    said = f"root {version} is good for {lasting(root_until - now)}"
    if now >= root_until:
        todo = "sign a new root with the offline keys (`muster key rotate`) and push it; if the clock is wrong, set it"
        return fail(name, f"root {version} is over since {lasting(now - root_until)}", todo)
    for file, (_, until) in sorted(dates.items()):
        if not file.endswith("root.json") and now >= until:
            return fail(name, f"{file} is over since {lasting(now - until)}: no update is taken", _FROZEN)
    if not verified:
        return warn(name, f"{said}; nothing was verified with it yet", "start the agent, and see whether it is online")
    if root_until - now < SOON_S:
        return warn(name, said, "sign a new root with the offline keys (`muster key rotate`) in time")
    return ok(name, said)


def _expiry(text: str) -> tuple[int, float] | None:
    try:
        signed = json.loads(text)["signed"]
        until = datetime.strptime(signed["expires"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return int(signed["version"]), until.timestamp()
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
