"""On which layouts of a device's backup a test runs.

In tests/faults/ all of them run on each, unless one says on_one_layout(); elsewhere those do that say both_layouts.
"""

from __future__ import annotations

import pytest

from infiniswap.device.limits import BACKUP_LAYOUTS

both_layouts = pytest.mark.parametrize("layout", BACKUP_LAYOUTS)


def on_one_layout(layout: str, why: str) -> pytest.MarkDecorator:
    """For a test to which the layout makes no difference, or of what one of them does not have; why: a sentence."""
    assert why.endswith("."), "a sentence"
    return pytest.mark.parametrize("layout", [layout])
