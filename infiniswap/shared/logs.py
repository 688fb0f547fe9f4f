"""What services log, and how: one format for both programs, journald's priorities, JSON, levels at run time.

A line of text is `TIME LEVEL MODULE: message key=value …`. Where stderr is the journal, which has its own time and
priorities, it is `<N>LEVEL MODULE: message key=value …` (sd-daemon(3)).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import UserError, one_line
from infiniswap.shared.log_limit import LogLimit
from infiniswap.shared.output import STDERR_FD, ServiceLog

PACKAGE = "infiniswap"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
INHERIT = "default"  # of a module: what all others have
# syslog(3); what is above WARNING and no ERROR is as bad as that.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_PLAIN = re.compile(r"[^\s\"'=]+")
LIMITED = "limited"  # on a record: whoever logs it counts by himself how many there are


def detail(**fields: object) -> dict[str, Any]:
    """For a logger's extra: what a line is about, as key=value at its end, or as keys in JSON."""
    return {"detail": fields}


def module_of(name: str) -> str:
    """A logger's name as the user sees it."""
    return name.removeprefix(f"{PACKAGE}.")


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether fd leads to the journal, as systemd says in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, "detail", None)
    return found if isinstance(found, Mapping) else {}


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(timespec="milliseconds")


class TextFormatter(logging.Formatter):
    """Lines for people. journal: with priorities, and without the time."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The record; a traceback follows on lines of its own."""
        fields = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        text = f"{record.levelname} {module_of(record.name)}: {one_line(record.getMessage())}{fields}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if not self._journal:
            return f"{_time(record)} {text}"
        priority = f"<{_PRIORITIES.get(record.levelno, 3)}>"
        return "\n".join(priority + line for line in text.split("\n"))  # the journal takes each line by itself


class JsonFormatter(logging.Formatter):
    """An object a line. journal: after the priority, which the journal takes away."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Time (ISO 8601), level, module, message, then what the record is about; exception: a traceback."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "module": module_of(record.name),
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            line.setdefault(key, value if isinstance(value, int | float | bool | None) else str(value))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        priority = f"<{_PRIORITIES.get(record.levelno, 3)}>" if self._journal else ""
        return priority + json.dumps(line)


class RateFilter(logging.Filter):
    """Lets warnings and errors of one kind through as LogLimit says, and tells how many it held back."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._limit = LogLimit(clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """False to drop it. A message's kind is its text before anything is put into it, and what is put in first."""
        if record.levelno < logging.WARNING or getattr(record, LIMITED, False):
            return True
        first = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        held_back = self._limit.admit((record.name, record.levelno, str(record.msg), first))
        if held_back is None:
            return False
        if held_back:
            record.msg = f"{record.getMessage()} ({held_back} more like this suppressed)"
            record.args = None
        return True


class ShardFilter(logging.Filter):
    """Says in each line which shard it is of: several services share one log."""

    def __init__(self, shard: str) -> None:
        super().__init__()
        self._shard = shard

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        record.detail = {**_fields(record), "shard": self._shard}
        return True


def start_logging(level: str, log_format: str = "text") -> None:
    """Log to stderr: level is one of LOG_LEVELS, log_format of LOG_FORMATS."""
    journal = is_journal(STDERR_FD, os.environ)
    handler = ServiceLog()
    handler.setFormatter(JsonFormatter(journal=journal) if log_format == "json" else TextFormatter(journal=journal))
    handler.addFilter(RateFilter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def name_shard(shard: str) -> None:
    """After start_logging(): each line says which shard this service is."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(ShardFilter(shard))


def levels() -> dict[str, str]:
    """The levels in force: of all ("") and of the modules that have one of their own."""
    found = {"": logging.getLevelName(logging.getLogger().level).lower()}
    for name, logger in sorted(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            found[module_of(name)] = logging.getLevelName(logger.level).lower()
    return found


def _logger_of(module: str) -> logging.Logger:
    known = logging.Logger.manager.loggerDict
    for name in (f"{PACKAGE}.{module}", module):
        if name in known:
            return logging.getLogger(name)
    modules = [module_of(name) for name in known if name.startswith(f"{PACKAGE}.")]
    near = get_close_matches(module, modules, 1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(sorted(modules))}"
    raise UserError(f"no module '{module}' logs here{hint}")


def set_level(*texts: str) -> None:
    """[MODULE=]LEVEL, from now on: of all modules that have none of their own, or of one and what is below it.

    MODULE=default takes a module's own level away. UserError for what is none; of several, all are set or none.
    """
    for logger, level in [_parse(text) for text in texts]:
        logger.setLevel(level)


def _parse(text: str) -> tuple[logging.Logger, int | str]:
    module, equals, level = text.rpartition("=")
    level = level.strip().lower()
    allowed = (*LOG_LEVELS, INHERIT) if equals else LOG_LEVELS
    if level not in allowed:
        raise UserError(f"log level '{level}' must be one of {', '.join(allowed)}")
    logger = _logger_of(module.strip()) if equals else logging.getLogger()
    return logger, logging.NOTSET if level == INHERIT else level.upper()
