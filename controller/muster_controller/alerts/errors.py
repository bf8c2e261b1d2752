"""The part of the error tree that telling people has.

MusterError
├── ReceiverInvalid           an address, a name or a setting that cannot be used
└── TellingFailed             a receiver did not take a notice; it is tried again
    └── ReceiverGone          it said that it never will
"""

from muster_shared.errors import MusterError


class ReceiverInvalid(MusterError):
    """The message says what would be valid; it never repeats an address, which may be a secret."""


class TellingFailed(MusterError):
    """`said` is short, and says nothing of the address."""

    def __init__(self, receiver: str, said: str) -> None:
        super().__init__(f"receiver {receiver} did not take it: {said}")
        self.receiver = receiver
        self.said = said


class ReceiverGone(TellingFailed):
    """A webhook answered 410 Gone (Standard Webhooks): it is disabled."""
