"""What either end of a lease's stream may be told."""

from __future__ import annotations

from infiniswap.shared.stream_messages import (
    ActivityAnswer,
    Ask,
    Echo,
    Evict,
    FromDaemon,
    FromDevice,
    Noticed,
    Policy,
    StreamBeat,
    StreamError,
    Taken,
    encode,
    from_daemon,
    from_device,
)


def stream_messages(data: bytes) -> None:
    """Both ends read a message, pass it over, or say in one line what is wrong; what was read can be sent again."""
    text = data.decode("utf-8", "replace")
    for read in (from_daemon, from_device):
        try:
            message = read(text)
        except StreamError as error:
            assert str(error).isprintable()
            continue
        if message is not None:
            assert read(encode(message)) == message


def stream_messages_seeds() -> list[bytes]:
    """One of each."""
    told: list[FromDaemon] = [StreamBeat(1, "i", 30.0, 1), Evict(1, (1, 2), 800), Ask(1, (1,), 150), Taken((1,))]
    said: list[FromDevice] = [Echo(1), Noticed(1, (1,), (2,)), ActivityAnswer(1, {1: 2.5})]
    return [encode(message).encode() for message in (*told, Policy(True), *said)]
