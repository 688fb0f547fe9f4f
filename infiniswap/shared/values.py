"""Values of options as users write them, each checked by itself: convert functions for options.Option.

Each takes the words by which an error names the option, and the value; UserError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.durations import parse_microseconds
from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import parse_size


def boolean(what: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UserError(f"{what} must be true or false, not '{value}'")
    return value


def _number(what: str, value: object, lowest: float, highest: float) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not lowest <= number <= highest:
        raise UserError(f"{what} '{value}' must be a number between {lowest:g} and {highest:g}")
    return number


def integer(lowest: int, highest: int) -> Callable[[str, object], int]:
    """A whole number from lowest to highest."""

    def convert(what: str, value: object) -> int:
        number = _number(what, value, lowest, highest)
        if number != int(number):
            raise UserError(f"{what} '{value}' must be a whole number")
        return int(number)

    return convert


def decimal(lowest: float, highest: float) -> Callable[[str, object], float]:
    """A number from lowest to highest."""
    return lambda what, value: _number(what, value, lowest, highest)


def size(what: str, value: object) -> int:
    """Bytes, written with or without a unit."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UserError(f"{what} '{value}' is not a size; write for example 64MiB")
    try:
        return parse_size(value)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def microseconds(what: str, value: object) -> int:
    """A short time, such as 1ms."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UserError(f"{what} '{value}' is no time; write for example 1ms")
    try:
        return parse_microseconds(str(value))
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def path(what: str, value: object) -> Path:
    """A path, made absolute."""
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text or "\0" in text or "\n" in text:
        raise UserError(f"{what} must be a path, not '{value!r}'")
    return Path(text).absolute()


def choice(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    """One of these words."""

    def convert(what: str, value: object) -> str:
        if value not in choices:
            raise UserError(f"{what} '{value}' must be one of {', '.join(choices)}")
        return str(value)

    return convert


def listen_address(default_port: int | None = None) -> Callable[[str, object], HostPort]:
    """Where to listen; port 0 is any free one, no port default_port."""

    def convert(what: str, value: object) -> HostPort:
        if not isinstance(value, str):
            raise UserError(f"{what} must be HOST:PORT")
        return parse_host_port(value, what, port_min=0, default_port=default_port)

    return convert


def addresses(
    most: int, port_min: int, default_port: int | None = None
) -> Callable[[str, object], tuple[HostPort, ...]]:
    """At most so many addresses, as a list or one alone, each once."""

    def convert(what: str, value: object) -> tuple[HostPort, ...]:
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [str(value)]
        if len(texts) > most:
            raise UserError(f"{what}: {len(texts)} given, the most is {most}")
        found: list[HostPort] = []
        for text in texts:
            address = parse_host_port(str(text), what, port_min=port_min, default_port=default_port)
            if address.port and address in found:
                raise UserError(f"{what} '{address}' is given twice; name each once")
            found.append(address)
        return tuple(found)

    return convert
