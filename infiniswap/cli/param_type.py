"""click.ParamType, which is generic for type checkers only from click 8.2 on; Debian 12 has 8.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """The same, with the type of its values named in brackets, whichever click there is."""

        def __class_getitem__(cls, _kind: object) -> type:
            return cls
