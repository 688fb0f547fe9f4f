"""The help helps: whole sentences at 80 columns, and a word that is no command is met with the one that was meant."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from infiniswap.cli import main as cli_main
from infiniswap.cli.main import LazyGroup, make_cli
from infiniswap.shared.errors import ExitCode
from infiniswap.shared.suggest import did_you_mean

WIDTH = 80


def groups(command: click.Group, context: click.Context) -> Iterator[tuple[str, click.Group, click.Context]]:
    """Every group with its full name."""
    yield context.command_path, command, context
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if isinstance(found, click.Group):
            yield from groups(found, click.Context(found, context, name))


def test_summaries_are_whole_lines() -> None:
    """In every list of commands each has one line, which ends with its sentence and is not cut."""
    cli = make_cli()
    listed = 0
    for path, group, _ in groups(cli, click.Context(cli, info_name="infiniswap")):
        context = click.Context(group, info_name=path, terminal_width=WIDTH)
        text = group.get_help(context)
        body = text[text.index("Commands:\n") :].splitlines()[1:]
        rows = body[: body.index("")] if "" in body else body
        assert len(rows) == len(group.list_commands(context)), f"{path}: a summary takes more than a line"
        for row in rows:
            assert row.endswith("."), f"{path}: the first sentence of this command's help is too long: {row}"
            assert not row.endswith("..."), f"{path}: the first sentence of this command's help is too long: {row}"
            assert len(row) <= WIDTH
        listed += len(rows)
    assert listed > 20


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["devcie"], "no command 'devcie' in 'infiniswap'; did you mean 'device'?"),
        (["Slabs", "vol"], "did you mean 'slabs'"),
        (["device", "lst"], "no command 'lst' in 'infiniswap device'; did you mean 'list'?"),
        (["cordon", "h:1"], "did you mean 'infiniswap donor cordon'?"),
        (["device", "slabs"], "did you mean 'infiniswap slabs'?"),
        (["slabs", "vol", "--jsno"], "--json"),
        (["slabs", "vol", "-o", "per"], None),
        (["xyzzy"], "; there are device, "),
    ],
)
def test_did_you_mean(arguments: list[str], hint: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown word is a usage error in one line that names what is like it, wherever it stands."""
    code = cli_main.run(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if hint is not None:
        assert code == ExitCode.USAGE
        assert hint in error


def test_verbs_that_begin_with_a_dash() -> None:
    """An option in the place of a verb is told as an option."""
    cli = make_cli()
    assert isinstance(cli, LazyGroup)
    with pytest.raises(click.UsageError, match="No such option"):
        cli.main(["--nosuch"], standalone_mode=False)


def test_nothing_is_like_it() -> None:
    """Nothing is guessed where nothing is like the word, and no more than a few where much is."""
    assert did_you_mean("xyzzy", ["device", "donor"]) == ""
    assert did_you_mean("", ["device"]) == ""
    assert did_you_mean("peer-timeout", ["peer_timeout", "peer_grace"]) == "; did you mean 'peer_timeout'?"
    assert did_you_mean("abcd", [f"abc{i}" for i in range(9)]).count("'") == 6
