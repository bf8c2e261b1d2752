"""The rollout machines of fleet tools in the field, emulated from their documentation: their rules, none of their code.

Only as much as the traps need that they fell into. What their gates do with counts is in `anchor_gates`. All of them,
and ours in the tests, are driven through `Tool`.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from harness.anchor_gates import hawkbit_aborts
from muster_shared.ids import DeviceId


class Tool(Protocol):
    """A tool that brings a release to a fleet. A device is told to run it, and may be told to go back."""

    def pass_time(self, seconds: float) -> None:
        """Let time go by, with as many looks at the clock as the tool likes."""
        ...

    def report(self, device: DeviceId, good: bool) -> None: ...

    def resume(self) -> None:
        """An operator lets a paused rollout go on."""
        ...

    def cancel(self) -> None:
        """An operator ends the rollout."""
        ...

    def join(self, device: DeviceId) -> None:
        """A device comes into the group while the rollout is under way."""
        ...

    @property
    def told(self) -> Sequence[DeviceId]:
        """Who was told to run the release, in order."""
        ...

    @property
    def left_with_it(self) -> Sequence[DeviceId]:
        """Who was told to run the release, and nothing else since."""
        ...


class Status(Enum):
    QUEUED = "queued"
    UNDER_WAY = "under_way"
    FINISHED = "finished"
    ERROR = "error"


class _Devices:
    """What the emulations share: devices with a status, told in order."""

    def __init__(self) -> None:
        self.status: dict[DeviceId, Status] = {}
        self.told: list[DeviceId] = []
        self.left_with_it: list[DeviceId] = []

    def begin(self, devices: Sequence[DeviceId]) -> None:
        for device in devices:
            self.status[device] = Status.UNDER_WAY
            self.told.append(device)
            self.left_with_it.append(device)

    def report(self, device: DeviceId, good: bool) -> None:
        if self.status.get(device) is Status.UNDER_WAY:
            self.status[device] = Status.FINISHED if good else Status.ERROR

    def resume(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def join(self, device: DeviceId) -> None:
        pass


class HawkBit(_Devices):
    """Eclipse hawkBit: groups one after another; success starts the next, an error pauses. Looks every 2 s.

    The error condition is asked first, of the group's whole size. A group of which every device has ended is finished,
    and the next one is started, whether or not the success condition was met. Resuming a rollout that an error paused
    starts the next group. A device that says nothing stays under way for ever.
    """

    TICK_S = 2.0

    def __init__(self, groups: Sequence[Sequence[DeviceId]], *, success: float = 90.0, error: float = 50.0) -> None:
        super().__init__()
        self._groups = groups
        self._success, self._error = success, error
        self._group = 0
        self._is_paused = False
        self.begin(groups[0])

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / self.TICK_S)):
            self._look()

    def resume(self) -> None:
        self._is_paused = False
        self._start_next()

    def _look(self) -> None:
        group = self._groups[self._group]
        if self._is_paused:
            return
        errors = sum(self.status[device] is Status.ERROR for device in group)
        finished = sum(self.status[device] is Status.FINISHED for device in group)
        if hawkbit_aborts(errors, len(group), self._error):
            self._is_paused = True
        elif finished / len(group) * 100 >= self._success or finished + errors == len(group):
            self._start_next()

    def _start_next(self) -> None:
        if self._group + 1 < len(self._groups):
            self._group += 1
            self.begin(self._groups[self._group])


class AwsContinuousJob(_Devices):
    """AWS IoT Jobs, a continuous job: a constant rate, in which those who join later are not counted.

    A device that comes into the group is notified at once. Cancelling takes back what is queued, and leaves what is in
    progress to itself.
    """

    def __init__(self, devices: Sequence[DeviceId], *, per_minute: float) -> None:
        super().__init__()
        self._queue = list(devices)
        self._per_minute = per_minute
        self._credit = 0.0
        self._is_cancelled = False

    def pass_time(self, seconds: float) -> None:
        if self._is_cancelled:
            return
        self._credit += seconds * self._per_minute / 60
        count = min(int(self._credit), len(self._queue))
        self._credit -= count
        self.begin(self._queue[:count])
        del self._queue[:count]

    def join(self, device: DeviceId) -> None:
        self.begin([device])

    def cancel(self) -> None:
        self._is_cancelled = True
        self._queue.clear()


class MenderPhases(_Devices):
    """Mender's phased deployment: each phase begins at its time, whatever became of the one before."""

    def __init__(self, phases: Sequence[Sequence[DeviceId]], *, every_s: float) -> None:
        super().__init__()
        self._phases = phases
        self._every_s = every_s
        self._now = 0.0
        self._begun = 0
        self.pass_time(0.0)

    def pass_time(self, seconds: float) -> None:
        self._now += seconds
        while self._begun < len(self._phases) and self._now >= self._begun * self._every_s:
            self.begin(self._phases[self._begun])
            self._begun += 1
