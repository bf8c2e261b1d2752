"""What stops a batch job.

MusterError
└── BatchError
    ├── JobInvalid        the command, the input file or the output cannot be used as they are: nothing was asked
    ├── RowsRefused       the agent refused these rows, or its engine failed on them: the same command fails again
    ├── Unfinished        the agent was busy or away for too long: the same command goes on from here
    ├── Moved             the input, the command or the release is not the one that the job began with
    ├── Busy              (never leaves the package) this request was turned away: send it again
    └── Lost              (never leaves the package) the connection is of no further use: make another
"""

from muster_shared.errors import MusterError


class BatchError(MusterError):
    """Anything that keeps a batch job from its end."""


class JobInvalid(BatchError):
    """The message names what to change in the command or the files."""


class RowsRefused(BatchError):
    """The agent does not take these rows."""


class Unfinished(BatchError):
    """It stopped before the end, and everything up to there is on disk."""


class Moved(BatchError):
    """What the job began with is not there any more; going on would mix two results in one file."""


class Busy(BatchError):
    """The agent has no room for this request now."""


class Lost(BatchError):
    """The agent is gone, or does not serve the model yet."""
