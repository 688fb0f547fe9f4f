"""What a client of the daemon asked for and cannot have."""

from http import HTTPStatus


class RefusedError(Exception):
    """An answer of 4xx or 5xx: status and one sentence for the client, which never contains a secret."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
