"""Signing many assignments at once, on all processors: a fleet that is called back waits for it.

It makes no decision about keys; `tuf_repository` says with which one.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from securesystemslib.signer import Signer

from muster_shared.assignment import Assignment, sign

TOGETHER = 128  # Documents that a thread takes at a time; from here on threads are worth their start.


def sign_all(documents: Sequence[Assignment], signer: Signer) -> list[bytes]:
    """Return the envelopes of `documents`, in order. Ed25519 is reckoned without the interpreter's lock."""
    if len(documents) < TOGETHER:
        return [sign(document, signer) for document in documents]
    signed: list[list[bytes]] = [[] for _ in range(0, len(documents), TOGETHER)]
    waiting = deque(range(len(signed)))

    def work() -> None:
        while True:  # Whoever is faster does more of them.
            try:
                part = waiting.popleft()
            except IndexError:
                return
            some = documents[part * TOGETHER : (part + 1) * TOGETHER]
            signed[part] = [sign(document, signer) for document in some]

    others = min(len(signed), os.cpu_count() or 1) - 1  # This thread works, too.
    if not others:
        work()
    else:
        with ThreadPoolExecutor(others) as pool:
            helping = [pool.submit(work) for _ in range(others)]
            work()
            for each in helping:
                each.result()
    return [envelope for part in signed for envelope in part]
