"""A process that may be killed between any two calls of its ports.

`fused(port, fuse)` is the port; once the fuse is lit, one of the next calls raises `SimulatedCrash` instead.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception: nothing may catch it but the world."""


class Fuse:
    """Counts calls down to the one that never happens."""

    def __init__(self) -> None:
        self.left: int | None = None
        """Calls until the crash; None is an unlit fuse."""

    def light(self, calls: int) -> None:
        self.left = calls

    def burn(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise SimulatedCrash


class _Fused:
    def __init__(self, port: object, fuse: Fuse) -> None:
        self._port = port
        self._fuse = fuse

    def __getattr__(self, name: str) -> object:
        found = getattr(self._port, name)
        if not callable(found):
            return found
        wrapped = _burning(found, self._fuse)
        self.__dict__[name] = wrapped
        return wrapped


def _burning(call: Callable[P, T], fuse: Fuse) -> Callable[P, T]:
    burn = fuse.burn

    def burning(*args: P.args, **kwargs: P.kwargs) -> T:
        burn()
        return call(*args, **kwargs)

    return burning


def fused(port: T, fuse: Fuse) -> T:
    """Return `port`, each call of which burns `fuse`."""
    return cast(T, _Fused(port, fuse))
