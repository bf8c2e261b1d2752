"""The local token: whoever may read the controller's folder is its administrator, and needs no login.

`<data>/local-token` is written anew, 0600, at each start; the command line on this machine reads it.
"""

import getpass
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from muster_controller.operators.credentials import LOCAL_PREFIX
from muster_controller.operators.roles import Principal, PrincipalKind, Role
from muster_controller.registry import durable

FILE = "local-token"
TOKEN_BYTES_MAX = 200


@dataclass(frozen=True)
class LocalToken:
    """The token of this run, and who it stands for."""

    text: str = field(repr=False)
    principal: Principal

    def is_that(self, text: str) -> bool:
        return hmac.compare_digest(self.text.encode(), text.encode("utf-8", "replace"))


def write_local(data: Path) -> LocalToken:
    """Make the token of this run. Raises OSError."""
    token = LocalToken(
        LOCAL_PREFIX + secrets.token_urlsafe(32),
        Principal(f"local:{_user()}", Role.ADMIN, kind=PrincipalKind.LOCAL),
    )
    durable.write(data / FILE, token.text.encode(), 0o600)
    return token


def read_local(data: Path) -> str | None:
    """Return the token of the controller of this folder; None where there is none, or we may not read it."""
    try:
        with (data / FILE).open("rb") as file:
            found = file.read(TOKEN_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return found or None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container may have no name for its user.
        return f"uid-{os.getuid()}"
