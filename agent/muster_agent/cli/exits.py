"""How a command ends."""

OK, FAILED, USAGE, UNREACHABLE, BUSY, UNFINISHED, MOVED, WAITING = 0, 1, 2, 3, 4, 5, 6, 7
INTERRUPTED = 130  # As a shell says it of SIGINT.


class CommandFailed(Exception):
    """Ends the command with a message for the operator and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
