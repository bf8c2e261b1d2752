"""The operators' part of the error tree.

MusterError
└── OperatorError
    ├── Unauthenticated       nobody is proven: log in, or send a token
    ├── LoginRefused          name or password is wrong, or the account is off: never says which
    ├── LoginLocked           too many failures; says how long
    ├── Forbidden             proven, and may not
    ├── OperatorExists        the name or subject is taken
    ├── PasswordUnfit         too short, or too plain
    ├── LinkSpent             a one-time link that was used, or is too old
    └── OidcFailed            the identity provider does not answer, or what it says does not hold
"""

from muster_shared.errors import MusterError


class OperatorError(MusterError):
    pass


class Unauthenticated(OperatorError):
    pass


class LoginRefused(OperatorError):
    def __init__(self) -> None:
        super().__init__("name and password do not fit, or this operator is disabled; an admin can help: `muster user`")


class LoginLocked(OperatorError):
    """`wait_s` seconds from now."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(
            f"too many failures; try again in {max(1, round(wait_s))} s, or have an admin run `muster user unlock NAME`"
        )
        self.wait_s = wait_s


class Forbidden(OperatorError):
    pass


class OperatorExists(OperatorError):
    pass


class PasswordUnfit(OperatorError):
    pass


class LinkSpent(OperatorError):
    def __init__(self) -> None:
        super().__init__("this link was used already, or is too old; `muster user link NAME` makes another")


class OidcFailed(OperatorError):
    pass
