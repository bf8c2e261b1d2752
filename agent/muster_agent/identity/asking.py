"""Asking for a renewal in a process that does not stay: cryptography, TLS and a vendor's PKCS#11 module would cost the
agent 15 MB, and its life if the module crashes, for work of a second a week.

    agent                                        python -P -m muster_agent.identity.asking
    ask_in_process ── Order ──▶ standard input ──▶ client.renew ──▶ the identity's folder
                   ◀── Outcome ── standard output ──┘

The process has a deadline, and is ended with whoever waits for it.
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from muster_agent.core.renewal import Declined, Failed
from muster_shared.undecodable import UNDECODABLE

ANSWER_S = 120.0  # A token may sign slowly, and the controller is asked twice when the clock is wrong.
OUTCOME_BYTES_MAX = 64 * 1024
COMMAND = (sys.executable, "-P", "-m", "muster_agent.identity.asking")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do."""

    folder: str
    key: str
    agent_version: str


class Renewed(msgspec.Struct, frozen=True, kw_only=True, tag="renewed"):
    """The folder holds a new certificate."""


class NotRenewed(msgspec.Struct, frozen=True, kw_only=True, tag="not"):
    """It does not; `code` is empty when the controller did not answer."""

    reason: str
    code: str = ""
    retry_s: float | None = None


Outcome = Renewed | NotRenewed
_outcome: msgspec.json.Decoder[Outcome] = msgspec.json.Decoder(Outcome)


async def ask_in_process(order: Order) -> Declined | Failed | None:
    """Return why there is no new certificate; None: there is one."""
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        return Failed(f"the process that asks could not be started: {error.strerror}; free some memory")
    try:
        async with asyncio.timeout(ANSWER_S):
            said, _ = await process.communicate(msgspec.json.encode(order))
    except TimeoutError:
        return Failed(f"no answer within {ANSWER_S:g} s: the token or the controller hangs")
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    try:
        outcome = _outcome.decode(said[:OUTCOME_BYTES_MAX])
    except UNDECODABLE:
        return Failed(f"the process that asks ended with code {process.returncode}; see its last lines in the log")
    if isinstance(outcome, Renewed):
        return None
    return Declined(outcome.code, outcome.reason, outcome.retry_s) if outcome.code else Failed(outcome.reason)


# -- the other side ----------------------------------------------------------------------------------------------------


def renew(order: Order) -> Outcome:
    """Ask once."""
    from muster_agent.errors import EnrolmentRefused, IdentityError
    from muster_agent.identity.client import renew
    from muster_agent.identity.folder import IdentityFolder
    from muster_agent.identity.keys import open_key
    from muster_shared.enrolment import Waiting

    folder = IdentityFolder(Path(order.folder))
    try:
        answer = renew(folder, open_key(order.key, folder, make=False), agent_version=order.agent_version)
    except EnrolmentRefused as error:
        return NotRenewed(reason=str(error), code=error.code)
    except IdentityError as error:
        return NotRenewed(reason=str(error))
    if isinstance(answer, Waiting):
        return NotRenewed(reason=answer.reason, code="waiting", retry_s=answer.retry_s)
    return Renewed()


def main() -> int:
    """Do the order on the standard input, and tell on the standard output."""
    outcome = renew(msgspec.json.decode(sys.stdin.buffer.read(OUTCOME_BYTES_MAX), type=Order))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
