"""What users got wrong: one clear line and a documented exit code, never a traceback."""

from enum import IntEnum

MESSAGE_CHARACTERS_MAX = 1000  # of a line that quotes what somebody wrote


class ExitCode(IntEnum):
    """Exit codes of every command; the README's table is checked against this."""

    OK = 0
    FAILED = 1  # the operation itself failed, or a comparison did not hold
    USAGE = 2  # wrong arguments or configuration (click's own code for it)
    NOT_FOUND = 3  # no such device, file or running service
    IN_USE = 4  # name, port, file or device already in use
    REFUSED = 5  # refused for safety: foreign data, a mounted device, a wrong size, stale state
    RESOURCES = 6  # out of disk space, memory, permissions
    UNREACHABLE = 7  # no peer could be reached where one is needed


def one_line(message: str) -> str:
    """Make message one line of bounded length: line ends and control characters as escapes, the middle left out."""
    if len(message) > MESSAGE_CHARACTERS_MAX:
        message = f"{message[: MESSAGE_CHARACTERS_MAX // 2]} … {message[-MESSAGE_CHARACTERS_MAX // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


class UserError(Exception):
    """A mistake that the user can mend: the message says what is wrong and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        """message: one line, without a full stop needed; code: how the process ends.

        What it quotes of a file or an argument may hold line ends and control characters: they are shown as escapes.
        """
        super().__init__(one_line(message))
        self.code = code
