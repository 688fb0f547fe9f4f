"""Scripts by which shells complete both commands: `python3 -m scripts.packaging.completion FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import FishComplete, ZshComplete

PROGRAMS = ("infiniswap", "infiniswapd")
# click's own one for bash takes HOST:PORT for three words, and a file after = for none.
BASH = """\
# Completion of %(program)s in bash; in a shell of one's own: source this file.
%(function)s() {
    local IFS=$'\\n' response line type value words cword cur
    if declare -F _get_comp_words_by_ref > /dev/null; then
        _get_comp_words_by_ref -n : -w words -i cword -c cur
    else
        words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]}
    fi
    # --option=VALUE comes as three words here, and is two there.
    local -a kept=()
    local index at=$cword
    for index in "${!words[@]}"; do
        if [ "${words[index]}" = = ] && [ "$index" -le "$cword" ]; then
            if [ "$index" = "$cword" ]; then kept+=("") cur=; else at=$((at - 1)); fi
        else
            kept+=("${words[index]}")
        fi
    done
    response=$(COMP_WORDS="$(printf '%%q ' "${kept[@]}")" COMP_CWORD=$at %(variable)s=bash_complete "$1" 2> /dev/null)
    COMPREPLY=()
    for line in $response; do
        type=${line%%%%,*} value=${line#*,}
        case $type in
            dir) compopt -o dirnames -o nospace 2> /dev/null ;;
            file) compopt -o default -o filenames 2> /dev/null ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
    if declare -F __ltrim_colon_completions > /dev/null; then __ltrim_colon_completions "$cur"; fi
    return 0
}
complete -o nosort -F %(function)s %(program)s
"""


def scripts() -> dict[Path, str]:
    """Where each belongs below /usr/share, and what it says."""
    found = {}
    for program in PROGRAMS:
        variable, nothing = f"_{program.upper()}_COMPLETE", click.Group(program)
        names = {"program": program, "function": f"_{program}_completion", "variable": variable}
        found[Path("bash-completion/completions") / program] = BASH % names
        zsh, fish = (kind(nothing, {}, program, variable).source() for kind in (ZshComplete, FishComplete))
        found[Path("zsh/vendor-completions") / f"_{program}"] = zsh
        found[Path("fish/vendor_completions.d") / f"{program}.fish"] = fish
    return found


def main(arguments: list[str]) -> int:
    """Write them below the folder."""
    for name, text in scripts().items():
        path = Path(arguments[0]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
