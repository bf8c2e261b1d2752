"""What decoding JSON from outside can raise, and how much of that is repeated to people.

msgspec documents one class, `MsgspecError`; text that is not UTF-8 and nesting without end come as Python's own errors.
Whoever decodes what others wrote catches all three, or one message of a stranger ends a thread.
"""

from typing import Final

import msgspec

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
REASON_CHARACTERS_MAX: Final = 300


def reason(error: Exception) -> str:
    """Return what `error` says, cut: it quotes the input, whose author must not fill our logs."""
    said = str(error)
    return said if len(said) <= REASON_CHARACTERS_MAX else f"{said[:REASON_CHARACTERS_MAX]}…"
