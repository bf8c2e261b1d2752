"""What the device lets itself be asked for: the table `[calls]` of `agent.toml`."""

from typing import Literal

import msgspec

Allowed = Literal["self_test", "benchmark", "logs"]


class CallsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it unless the owner of the device says otherwise (decision 0016 says why)."""

    allow: tuple[Allowed, ...] = ("self_test", "benchmark", "logs")
    """Empty: it answers no call at all but to say so."""
