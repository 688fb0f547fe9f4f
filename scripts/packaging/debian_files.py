"""Writes what Debian's package holds besides the Python packages: `python3 -m scripts.packaging.debian_files FOLDER`.

Run by packaging/debian/rules, with the code that was just installed into FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infiniswap.kernel_shim import units
from scripts.packaging import completion, man_pages

BIN = Path("/usr/bin")
DOCS = Path("/usr/share/doc/infiniswap/vm.md")
CONFIGURATION = Path("docs/infiniswapd.toml")


def write(path: Path, text: str) -> None:
    """One file, with the folders it stands in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main(arguments: list[str]) -> int:
    """All of it below the folder."""
    top = Path(arguments[0])
    for name in units.UNIT_NAMES:
        write(top / "lib/systemd/system" / name, units.render(name, BIN, DOCS))
    for name, place in units.SETTINGS.items():
        write(top / "usr/lib" / place, units.render(name, BIN, DOCS))
    write(top / "etc/infiniswap/infiniswapd.toml", CONFIGURATION.read_text())
    for page in man_pages.pages():
        write(top / f"usr/share/man/man{page.section}" / page.file_name, page.text)
    for script, text in completion.scripts().items():
        write(top / "usr/share" / script, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
