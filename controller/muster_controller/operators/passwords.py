"""Passwords: argon2id, as RFC 9106 recommends where memory is scarce (t=3, 64 MiB, p=4).

How many are hashed at once is bounded, so that logins cannot take the machine's memory. Nothing is stored here.
"""

from dataclasses import dataclass
from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from muster_controller.operators.errors import PasswordUnfit

LENGTH_MIN = 12
LENGTH_MAX = 256  # Characters; argon2 would take more, a request need not.
AT_ONCE = 2  # 64 MiB each.


@dataclass(frozen=True)
class Checked:
    is_right: bool
    renewed: str | None = None
    """The hash by today's parameters, where the stored one was made by others."""


class Passwords:
    """For any thread. `hasher` is another in tests, which have no seconds to spare."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._turns = BoundedSemaphore(AT_ONCE)
        self._nobody = ""

    def hashed(self, password: str) -> str:
        """Return the argon2 string of a fit password."""
        with self._turns:
            return self._hasher.hash(password)

    def check(self, stored: str, password: str) -> Checked:
        """Return whether `password` is right. `stored` may be empty (an unknown name, or one without a password):
        then as much work is done as for any other, and the answer is no."""
        with self._turns:
            self._nobody = self._nobody or self._hasher.hash("nobody has this password")  # Slow: not at the start.
            try:
                self._hasher.verify(stored or self._nobody, password[: LENGTH_MAX + 1])
            except (VerificationError, InvalidHashError):
                return Checked(False)
            if not stored:
                return Checked(False)
            return Checked(True, self._hasher.hash(password) if self._hasher.check_needs_rehash(stored) else None)


def check_fit(password: str, name: str) -> None:
    """Raise PasswordUnfit unless it is long enough and not the name. Long beats odd characters (NIST SP 800-63B)."""
    if not LENGTH_MIN <= len(password) <= LENGTH_MAX:
        raise PasswordUnfit(f"a password has {LENGTH_MIN} to {LENGTH_MAX} characters; a few words make a good one")
    if name.lower() in password.lower() and len(password) < len(name) + LENGTH_MIN:
        raise PasswordUnfit("the name of its owner does not count as part of a password; make it longer")
    if len(set(password)) < 5:
        raise PasswordUnfit("this password repeats itself; a few words make a good one")
