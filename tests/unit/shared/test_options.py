"""Options: one description each, from which flag, key, help and example follow for both programs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from infiniswap.daemon import config as daemon_config
from infiniswap.daemon.options import OPTIONS as DAEMON
from infiniswap.device import config as device_config
from infiniswap.device.options import OPTIONS as DEVICE
from infiniswap.shared.errors import UserError
from infiniswap.shared.options import Options
from tests.support.examples import DAEMON_FILE, DEVICE_FILE, examples


@pytest.mark.parametrize("path", [DEVICE_FILE, DAEMON_FILE])
def test_the_example_is_up_to_date(path: Path) -> None:
    """What stands in docs/ is what the descriptions say; scripts/write_examples writes it."""
    assert path.read_text() == examples()[path]


def test_the_examples_can_be_used(tmp_path: Path) -> None:
    """As they stand they describe a device and a daemon with all defaults; with every line taken in, still one each."""
    device, daemon = tmp_path / "device.toml", tmp_path / "daemon.toml"
    for in_full in (False, True):
        for path, source in ((device, DEVICE_FILE), (daemon, DAEMON_FILE)):
            text = source.read_text()
            path.write_text(re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE) if in_full else text)
        made_device = device_config.load_config(None, {}, device)
        made_daemon = daemon_config.load_config({}, daemon)
        if not in_full:
            assert made_device == device_config.load_config(
                "NAME", {"size": made_device.size_bytes, "backup": str(made_device.backup)}
            )
            assert made_daemon == daemon_config.load_config({"memory": str(made_daemon.memory)})
    assert made_device.rdma_device == "mlx5_0"
    assert made_daemon.rdma_gid_index == 3


@pytest.mark.parametrize(
    ("options", "config", "more"),
    [(DEVICE, device_config.DeviceConfig, {"name"}), (DAEMON, daemon_config.DaemonConfig, set())],
)
def test_every_field_has_its_option(options: Options, config: type, more: set[str]) -> None:
    """And every option its field; no two options write the same one."""
    named = [option.field for option in options]
    assert sorted(named) == sorted({field.name for field in fields(config)} - more)


@pytest.mark.parametrize("options", [DEVICE, DAEMON])
def test_defaults_are_values_that_could_be_given(options: Options) -> None:
    """What the help says is the default means the default when it is written down."""
    for option in options:
        if option.shown is None and option.default_text is not None:
            assert option.convert(option.flag, option.default_text) == option.default, option.name


def test_unknown_options_are_told() -> None:
    """With what there is; - and _ are the same, and so are some other words."""
    assert DEVICE.find("slab-size") is DEVICE.find("slab_size") is DEVICE.find("slab")
    with pytest.raises(UserError, match=r"^f: unknown option 'x'; known are memory, listen, "):
        DAEMON.find("x", "f: ")
