"""What a client of the daemon asked for and cannot have."""

from enum import Enum, auto


class Refusal(Enum):
    """Why; api.py says what that is in HTTP."""

    INVALID = auto()  # what was asked for makes no sense
    UNPROVEN = auto()  # no token came with it
    FORBIDDEN = auto()  # not to be had from where it was asked
    UNKNOWN = auto()  # there is no such lease, or not any more
    CONFLICT = auto()  # it does not go with what the lease has
    NO_RDMA = auto()  # this daemon does not do it
    UNAVAILABLE = auto()  # it cannot be done now
    NO_MEMORY = auto()
    TOO_OFTEN = auto()  # it may ask again later


class RefusedError(Exception):
    """A refusal, with one sentence for the client, which never contains a secret."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason
