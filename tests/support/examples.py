"""What follows from descriptions: files with every option, tables of metrics. Run as a module it writes them."""

from __future__ import annotations

from pathlib import Path

from infiniswap.daemon.options import OPTIONS as DAEMON
from infiniswap.device.options import OPTIONS as DEVICE
from infiniswap.kernel_shim.attach_options import ATTACH_OPTIONS
from tests.support import messages, metric_names

ROOT = Path(__file__).resolve().parents[2]
DEVICE_FILE = ROOT / "docs/device.toml"
DAEMON_FILE = ROOT / "docs/infiniswapd.toml"
MESSAGES_FILE = ROOT / "docs/messages.md"


def examples() -> dict[Path, str]:
    """What each file is to hold."""
    return {
        DEVICE_FILE: DEVICE.example(
            "A device, for 'infiniswap device serve --config FILE'; [attach] is for 'infiniswap device attach'.",
            {"name": '"NAME"'},
            {"attach": ATTACH_OPTIONS},
        ),
        DAEMON_FILE: DAEMON.example("The memory daemon, for 'infiniswapd --config FILE'."),
        MESSAGES_FILE: messages.page(ROOT),
        metric_names.DOCUMENT: metric_names.document(metric_names.DOCUMENT.read_text()),
    }


if __name__ == "__main__":
    for path, text in examples().items():
        path.write_text(text)
