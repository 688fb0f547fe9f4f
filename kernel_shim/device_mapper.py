"""Calls on device mapper by ioctl (linux/dm-ioctl.h), for worker.py: a device of one target, made and taken away."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Self

CONTROL = "/dev/mapper/control"
SECTOR_BYTES = 512
_HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")  # struct dm_ioctl
_TARGET = struct.Struct("=QQiI16s")  # struct dm_target_spec
_CREATE, _REMOVE, _SUSPEND, _LOAD = 3, 4, 6, 9
_BUFFER_BYTES = 16 << 10
_VERSION = (4, 0, 0)


def _request(command: int) -> int:
    return (3 << 30) | (_HEADER.size << 16) | (0xFD << 8) | command  # _IOWR


class DeviceMapper:
    """The control device, open."""

    def __enter__(self) -> Self:
        self._fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def create(self, name: str, sectors: int, target: str, parameters: str) -> int:
        """Make a device and let it go; its minor number. OSError, and then nothing is left of it."""
        answer = self._call(_CREATE, name, uuid=name)
        try:
            text = parameters.encode() + b"\0"
            text += bytes(-len(text) % 8)
            body = _TARGET.pack(0, sectors, 0, _TARGET.size + len(text), target.encode()) + text
            self._call(_LOAD, name, body=body)
            self._call(_SUSPEND, name)  # without the flag: resume
        except OSError:
            self._call(_REMOVE, name)
            raise
        device = int(_HEADER.unpack_from(answer)[10])
        return (device & 0xFF) | ((device >> 12) & 0xFFF00)  # the kernel's huge_encode_dev

    def remove(self, name: str) -> None:
        """Take it away; OSError EBUSY while anybody has it open."""
        self._call(_REMOVE, name)

    def _call(self, command: int, name: str, *, uuid: str = "", body: bytes = b"") -> bytearray:
        buffer = bytearray(_BUFFER_BYTES)
        if _HEADER.size + len(body) > len(buffer):
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        _HEADER.pack_into(
            buffer,
            0,
            *_VERSION,
            len(buffer),
            _HEADER.size,
            1 if body else 0,
            0,
            0,
            0,
            0,
            0,
            name.encode(),
            uuid.encode(),
        )
        buffer[_HEADER.size : _HEADER.size + len(body)] = body
        fcntl.ioctl(self._fd, _request(command), buffer)
        return buffer
