"""Credentials: what a session, an API token or a one-time link looks like, and how it is kept: as SHA-256 alone.

    session, link   ID.SECRET          token   mst_ID.SECRET          local   mlt_SECRET

A secret has 256 random bits, so that a slow hash would add nothing (decision 0013).
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

TOKEN_PREFIX = "mst_"
LOCAL_PREFIX = "mlt_"
_SHAPE = re.compile(r"(?P<id>[a-z0-9]{12})\.(?P<secret>[A-Za-z0-9_-]{43})")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class CredentialKind(Enum):
    SESSION = "session"
    TOKEN = "token"
    ONCE = "once"


@dataclass(frozen=True)
class Presented:
    """What somebody showed: parsed, not yet checked."""

    id: str
    secret_sha256: str

    def is_that(self, secret_sha256: str) -> bool:
        return hmac.compare_digest(self.secret_sha256, secret_sha256)


@dataclass(frozen=True)
class Made:
    """A new one. `text` is shown once and kept nowhere."""

    id: str
    text: str
    secret_sha256: str

    def __repr__(self) -> str:
        return f"Made({self.id!r})"


def make(kind: CredentialKind) -> Made:
    identity = "".join(secrets.choice(_LETTERS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    prefix = TOKEN_PREFIX if kind is CredentialKind.TOKEN else ""
    return Made(identity, f"{prefix}{identity}.{secret}", _hashed(secret))


def parse(kind: CredentialKind, text: str) -> Presented | None:
    """Return what `text` claims to be; None where it is nothing of this kind."""
    prefix = TOKEN_PREFIX if kind is CredentialKind.TOKEN else ""
    if not text.startswith(prefix):
        return None
    match = _SHAPE.fullmatch(text[len(prefix) :])
    return None if match is None else Presented(match["id"], _hashed(match["secret"]))


def bound(secret: str, purpose: str) -> str:
    """Return what only the holder of `secret` can know, for one purpose: the CSRF token of a session's forms."""
    return hmac.new(secret.encode(), purpose.encode(), sha256).hexdigest()


def _hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
