"""The engine declares nothing that nobody uses: functions that no other file calls, fields that nothing reads."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.tree import tree

NO_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
FUNCTION = re.compile(r"^(?!static|#|typedef|return)[\w*][\w\s*]*?\b(\w+)\([^;{}]*\);", re.MULTILINE)
STRUCT = re.compile(r"\bstruct(?:\s+\w+)?\s*\{(.*?)\n\s*\}", re.DOTALL)


def fields(header: str) -> list[str]:
    """Names of the fields of all structs in header, pointers to functions too."""
    found = []
    for body in STRUCT.findall(header):
        for declaration in body.split(";"):
            plain = re.sub(r"\[[^\]]*\]|:\s*\d+", "", declaration).strip()
            found += re.findall(r"\(\*(\w+)\)", plain) if "(" in plain else re.findall(r"(\w+)\s*(?=,|$)", plain)
    return found


def unused(headers: list[str], code: str) -> list[str]:
    """What headers declare and code, which holds headers and sources, does not use: named by the name alone."""
    found = []
    for header in headers:
        # Once where it is declared, once where it is defined.
        found += [name for name in FUNCTION.findall(header) if len(re.findall(rf"\b{name}\b", code)) <= 2]
        for name in fields(header):
            # Whoever writes through a pointer reads the pointer.
            read = rf"(?:->|\.){name}\b(?!\s*=[^=])|\*[\w.>-]+(?:->|\.){name}\b"
            if not re.search(read, code):
                found.append(name)
    return found


def test_nothing_is_declared_in_vain(root: Path) -> None:
    """In the headers of engine/src."""
    paths = [path for path in tree(root) if path.is_relative_to(root / "infiniswap/engine/src")]
    texts = {path: NO_CODE.sub(" ", path.read_text()) for path in paths if path.suffix in (".c", ".h")}
    headers = [text for path, text in texts.items() if path.suffix == ".h"]
    assert len(headers) > 15
    assert unused(headers, "\n".join(texts.values())) == []


def test_what_is_dead_is_found() -> None:
    """A function that is only defined, a field that is only written; not what is used in any way."""
    header = """
struct box {
    int read, written, array[4];
    struct box **end;
    void (*call)(struct box *box, int n);
};
void used(struct box *box);
int dead(void);
"""
    source = """
void used(struct box *box)
{
    box->written = box->read + box->array[0];
    *box->end = 0;
    box->call(box, 1);
}
int dead(void)
{
    used(0);
}
"""
    assert unused([header], header + source) == ["dead", "written"]
