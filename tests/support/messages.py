"""Every line that our programs log as a warning or an error, or end with, as their sources have it.

docs/messages.md is written from it (scripts/write_examples), and docs/troubleshooting.md is checked against it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("infiniswap", "daemon", "kernel_shim")
LEFT_OUT = ("simulation",)  # what is not run by an operator
LEVELS = {"warning": "WARNING", "error": "ERROR", "exception": "ERROR", "critical": "ERROR"}
VALUE = "…"
HEAD = """# Lines that a command ends with

Each is one line on stderr behind the program's name, and says itself what is to be done; … stands for what is filled
in. Search here for the words that do not change. The code is one of README's exit codes. What services log as warnings
and errors stands in [troubleshooting.md](troubleshooting.md), with what it means. `scripts/write_examples` writes this
file from the sources.

| line | code |
|---|---|
"""
_PERCENT = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[sdgfrx]")
_USAGE = "USAGE"


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """text: with … for what is filled in. level: WARNING, ERROR, or the exit code's name ("" where it depends)."""

    text: str
    level: str

    @property
    def says_something(self) -> bool:
        """Whether it has words of its own, and is not all filled in from elsewhere."""
        return len(re.findall(r"[a-z]{2,}", self.text)) >= 2


def _texts(node: ast.expr, known: dict[str, list[ast.expr]]) -> list[str]:
    """What the expression may come to; names stand for what the function has assigned to them."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [VALUE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)]
    if isinstance(node, ast.IfExp):
        return _texts(node.body, known) + _texts(node.orelse, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _texts(node.left, known) for b in _texts(node.right, known)]
    if isinstance(node, ast.Name) and node.id in known:
        return [text for value in known[node.id] for text in _texts(value, {})]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "one_line":
        return _texts(node.args[0], known)
    return [VALUE]


def _assigned(function: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(value)
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for name, part in zip(target.elts, value.elts, strict=False):
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(part)
    return found


def _level_of(call: ast.Call) -> tuple[str, ast.expr] | None:
    """The level of a call that says something, and its text."""
    function = call.func
    if isinstance(function, ast.Name) and function.id == "UserError" and call.args:
        code = call.args[1] if len(call.args) > 1 else None
        if code is None:
            return _USAGE, call.args[0]
        return (code.attr if isinstance(code, ast.Attribute) else ""), call.args[0]
    if not isinstance(function, ast.Attribute) or not call.args:
        return None
    if isinstance(function.value, ast.Name) and function.value.id == "log" and function.attr in LEVELS:
        return LEVELS[function.attr], call.args[0]
    if isinstance(function.value, ast.Name) and function.value.id == "log" and function.attr == "log":
        level = ast.unparse(call.args[0])
        return next(((word, call.args[1]) for word in ("ERROR", "WARNING") if word in level), None)
    # Complaints.say(key, message, level)
    if function.attr == "say" and len(call.args) >= 2 and "complaints" in ast.unparse(function.value).lower():
        level = ast.unparse(call.args[2]) if len(call.args) > 2 else "logging.WARNING"
        if "INFO" in level and "WARNING" not in level:
            return None
        return ("ERROR" if "ERROR" in level else "WARNING"), call.args[1]
    return None


def _messages(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    seen: set[int] = set()
    for scope in [*functions, tree]:
        known = _assigned(scope)
        for node in ast.walk(scope):
            if not isinstance(node, ast.Call) or id(node) in seen:
                continue
            said = _level_of(node)
            if said is None:
                continue
            seen.add(id(node))
            level, text = said
            for each in _texts(text, known):
                yield Message(plain(each), level)


def plain(text: str) -> str:
    """With one … for each run of values."""
    return re.sub(rf"{VALUE}(?:\s*{VALUE})+", VALUE, _PERCENT.sub(VALUE, text)).replace("%%", "%").strip()


def all_messages(root: Path) -> list[Message]:
    """Those of all programs, sorted, each once."""
    found = {
        message
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        if not set(LEFT_OUT) & set(path.relative_to(root).parts)
        for message in _messages(path)
    }
    return sorted(message for message in found if message.says_something)


def logged(root: Path) -> list[Message]:
    """Warnings and errors in logs."""
    return [message for message in all_messages(root) if message.level in LEVELS.values()]


def ending(root: Path) -> list[Message]:
    """Lines that a command ends with."""
    return [message for message in all_messages(root) if message.level not in LEVELS.values()]


def _cell(text: str) -> str:
    """As code in a table, which may hold neither of its signs."""
    return text.replace("|", "/").replace("`", "'")


def page(root: Path) -> str:
    """docs/messages.md."""
    rows = [f"| `{_cell(message.text)}` | {message.level or 'as the case is'} |" for message in ending(root)]
    return HEAD + "\n".join(rows) + "\n"
