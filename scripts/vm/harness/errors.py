"""How a run that is not the scenario's own failure ends."""


class HarnessError(Exception):
    """The machine could not be built or run: one line that says what to do, and the exit code of the run."""

    def __init__(self, message: str, code: int = 125) -> None:
        """message: one line; code: exit code (125: no machine, 124: deadline, 2: wrong arguments)."""
        super().__init__(message)
        self.code = code
