"""infiniswap status mute, unmute: a health code that is known about does not count for a while."""

from __future__ import annotations

import time
from typing import Any

import click

from infiniswap.cli.mutes import Mute, check_code, mutes_file, read_mutes, write_mutes
from infiniswap.cli.param_type import ParamType
from infiniswap.shared.durations import format_duration, parse_duration
from infiniswap.shared.errors import ExitCode, UserError

MUTE_S_MAX = 366 * 86_400.0


class Duration(ParamType[float]):
    """Seconds, written 90s, 10m or 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; click's usage error for what is no duration or out of bounds."""
        try:
            seconds = parse_duration(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)
        if not 0 < seconds <= MUTE_S_MAX:
            self.fail(f"'{value}' must be more than 0 and at most a year", param, ctx)
        return seconds


def _others(code: str, only: str | None, now_s: float) -> tuple[list[Mute], list[Mute]]:
    mutes = read_mutes(mutes_file(), now_s)
    same = [mute for mute in mutes if (mute.code, mute.only) == (code, only)]
    return same, [mute for mute in mutes if mute not in same]


only_option = click.option("--only", metavar="NAME|HOST:PORT", help="Only about this device or this peer.")


@click.command("mute")
@click.argument("code")
@click.option("--for", "for_s", type=Duration(), metavar="DURATION", help="For so long [default: until unmuted].")
@only_option
def command(code: str, for_s: float | None, only: str | None) -> None:
    """Let a health code not count for a while.

    CODE is one of those that 'infiniswap status --help' lists.
    """
    known, now_s = check_code(code), time.time()
    _, others = _others(known, only, now_s)
    write_mutes(mutes_file(), [*others, Mute(known, only, None if for_s is None else now_s + for_s)])
    about = f" about {only}" if only else ""
    click.echo(f"{known}{about} is muted {'until unmuted' if for_s is None else 'for ' + format_duration(for_s)}")


@click.command("unmute")
@click.argument("code")
@only_option
def unmute_command(code: str, only: str | None) -> None:
    """Let a health code count again.

    Without --only whatever mute there is of it ends.
    """
    known, now_s = check_code(code), time.time()
    same, others = _others(known, only, now_s)
    if only is None:
        same += [mute for mute in others if mute.code == known]
        others = [mute for mute in others if mute.code != known]
    if not same:
        raise UserError(f"{known} is not muted{f' about {only}' if only else ''}", ExitCode.NOT_FOUND)
    write_mutes(mutes_file(), others)
