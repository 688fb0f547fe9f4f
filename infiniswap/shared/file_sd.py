"""Lists of hosts in the shape of Prometheus' file_sd: [{"targets": ["HOST[:PORT]", …], "labels": {…}}, …].

As JSON, or as YAML where the file's name ends so. A list that is not whole and right is none at all: whoever reads it
goes on with the one before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infiniswap.shared.address import CONTROL_PORT, HostPort, parse_host_port
from infiniswap.shared.errors import UserError

FILE_BYTES_MAX = 1 << 20
TARGETS_MAX = 1024
DEPTH_MAX = 16  # of lists and mappings in each other; the shape has four
YAML_SUFFIXES = (".yml", ".yaml")


def parse(raw: bytes, file: Path) -> frozenset[HostPort]:
    """The targets in raw, which is file's content. ValueError says in a few words what is wrong with it."""
    if len(raw) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX >> 20} MiB")
    groups = _decode(raw, yaml=file.suffix in YAML_SUFFIXES)
    if not isinstance(groups, list):
        raise ValueError("it is not a list of groups with targets")
    found: set[HostPort] = set()
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
            raise ValueError('a group has no list of "targets"')
        if not isinstance(group.get("labels") or {}, dict):
            raise ValueError('"labels" of a group are no names with values')
        for target in group["targets"]:
            if not isinstance(target, str):
                raise ValueError("a target is not HOST:PORT")
            try:
                found.add(parse_host_port(target, "target", default_port=CONTROL_PORT))
            except UserError as error:
                raise ValueError(str(error)) from None
            if len(found) > TARGETS_MAX:
                raise ValueError(f"it names more than {TARGETS_MAX} targets")
    return frozenset(found)


def _decode(raw: bytes, *, yaml: bool) -> Any:
    try:
        text = raw.decode()
        if not yaml:
            return json.loads(text)
        return _decode_yaml(text)
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or ["it cannot be read"])[0]
        raise ValueError(f"it is not {'YAML' if yaml else 'JSON'}: {reason}") from None


def _decode_yaml(text: str) -> Any:
    import yaml  # not needed where lists are JSON

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where it was built with libyaml: many times as fast
    begins = (
        yaml.FlowSequenceStartToken,
        yaml.FlowMappingStartToken,
        yaml.BlockSequenceStartToken,
        yaml.BlockMappingStartToken,
    )
    ends = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
    depth = 0
    try:
        for token in yaml.scan(text, loader):
            if isinstance(token, yaml.AliasToken):
                raise ValueError("aliases are not for lists of hosts")  # a few of them make a list without end
            depth += isinstance(token, begins) - isinstance(token, ends)
            if depth > DEPTH_MAX:  # the time that it takes grows with the square of that
                raise ValueError(f"more than {DEPTH_MAX} lists are in each other")
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
