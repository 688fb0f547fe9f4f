"""What both programs tell Prometheus, as its own tools read it: promtool has nothing to say against it."""

from __future__ import annotations

import re
import subprocess
import urllib.request

from infiniswap.nbd.client import NbdClient
from tests.support.metric_names import daemon_names, device_names
from tests.support.services import ANSWER_TIMEOUT_S, Service, Services
from tests.support.waiting import wait_for

LISTEN = ("--metrics-listen", "127.0.0.1:0", "--log-level", "info")
# Only of a device that serves as root beside a kernel that has nbd.
NEVER_HERE = {"infiniswap_nbd_connections", "infiniswap_nbd_connections_replaced_total"}


def metrics_url(service: Service) -> str:
    """Where it serves /metrics, as its log says."""
    (url,) = wait_for(lambda: re.findall(r"metrics are at (http://\S+)", service.log), what="metrics")
    return str(url)


def fetch(service: Service) -> str:
    """All that a scrape would get."""
    with urllib.request.urlopen(metrics_url(service), timeout=ANSWER_TIMEOUT_S) as response:
        text: bytes = response.read()
    return text.decode()


def test_promtool_finds_nothing(services: Services) -> None:
    """Names, units, types and help of both programs pass 'promtool check metrics', and are those of the document."""
    daemon = services.daemon("64MiB", *LISTEN)
    device = services.device("vol", "--map", "eager", *LISTEN, peers=[daemon])
    with NbdClient(device.socket, "vol") as client:
        client.write(0, b"x" * 4096)
        client.read(0, 4096)
        client.flush()
    for service, names in ((daemon, daemon_names()), (device, device_names() - NEVER_HERE)):
        text = fetch(service)
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        told = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
        assert told - NEVER_HERE == names
