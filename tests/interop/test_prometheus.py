"""What both programs tell Prometheus, as its own tools read it: promtool, and a real one that scrapes and alerts."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from infiniswap.nbd.client import NbdClient
from tests.support.dashboard import queries
from tests.support.metric_names import daemon_names, device_names
from tests.support.services import ANSWER_TIMEOUT_S, Service, Services
from tests.support.waiting import wait_for

START_TIMEOUT_S = 60.0
LISTEN = ("--metrics-listen", "127.0.0.1:0", "--log-level", "info")
RULES = Path(__file__).resolve().parents[2] / "packaging/prometheus/infiniswap.rules.yml"
CONFIGURATION = """
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [rules.yml]
scrape_configs:
- job_name: infiniswap
  static_configs: [{targets: ["%s"]}]
- job_name: infiniswapd
  static_configs: [{targets: ["%s"]}]
"""
# Only of a device that serves as root beside a kernel that has nbd, and only of a daemon with a certificate.
NEVER_HERE = {
    "infiniswap_nbd_connections",
    "infiniswap_nbd_connections_replaced_total",
    "infiniswapd_handshakes_refused_total",
    "infiniswapd_roles_refused_total",
}


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
    # A device with a log tells all that one with an image does, and more.
    device = services.device("vol", "--map", "eager", "--backup-layout", "log", *LISTEN, peers=[daemon])
    with NbdClient(device.socket, "vol") as client:
        client.write(0, b"x" * 4096)
        client.read(0, 4096)
        client.flush()
    for service, names in ((daemon, daemon_names() - NEVER_HERE), (device, device_names() - NEVER_HERE)):
        text = fetch(service)
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        told = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
        assert told - NEVER_HERE == names


class Prometheus:
    """A real one that scrapes both programs twice a second."""

    def __init__(self, services: Services, device: Service, daemon: Service) -> None:
        """Alerts become active after a second instead of minutes."""
        folder = services.folder / "prometheus"
        folder.mkdir()
        (folder / "rules.yml").write_text(re.sub(r"for: \w+", "for: 1s", RULES.read_text()))
        targets = tuple(metrics_url(it).removeprefix("http://").removesuffix("/metrics") for it in (device, daemon))
        (folder / "prometheus.yml").write_text(CONFIGURATION % targets)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        self.service = services.spawn("prometheus", [*command, f"--web.listen-address=127.0.0.1:{self._port}"])

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of its answer, or None while it does not answer."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S) as response:
                return json.load(response)["data"]
        except OSError:
            assert self.service.running, self.service.log
            return None

    def value(self, query: str) -> float | None:
        """Of a query that has one sample."""
        data = self.ask("query", query=query)
        samples = data["result"] if data else []
        return float(samples[0]["value"][1]) if len(samples) == 1 else None

    def answers(self, query: str) -> bool:
        """Whether it takes the query and finds something."""
        return bool((self.ask("query", query=query) or {}).get("result"))

    def firing(self) -> dict[str, dict[str, str]]:
        """Labels of the alerts that fire, by name."""
        data = self.ask("alerts") or {"alerts": []}
        return {alert["labels"]["alertname"]: alert["labels"] for alert in data["alerts"] if alert["state"] == "firing"}


def test_a_real_prometheus(services: Services) -> None:
    """It scrapes a device and a daemon and gives their numbers when asked, whatever the dashboard asks among them.

    An alert fires when the peer is killed.
    """
    daemon = services.daemon("64MiB", *LISTEN)
    device = services.device("vol", "--map", "eager", "--peer-grace-ms", "0", *LISTEN, peers=[daemon])
    with device.connect() as client:
        for page in range(8):
            client.write(page * 4096, b"x" * 4096)
        client.flush()
        client.read(0, 8 * 4096)
    prometheus = Prometheus(services, device, daemon)
    told = '{device="vol",job="infiniswap"}'
    wait_for(lambda: prometheus.value(f"infiniswap_peer_up{told}") == 1, START_TIMEOUT_S, "a scrape of the device")
    assert prometheus.value(f"sum(infiniswap_read_bytes_total{told})") == 8 * 4096
    assert prometheus.value(f"sum(infiniswap_read_duration_seconds_count{told})") == 1
    assert prometheus.value(f"infiniswap_size_bytes{told}") == 32 << 20
    leases = wait_for(lambda: prometheus.value('infiniswapd_leases{job="infiniswapd"}'), START_TIMEOUT_S, "the daemon")
    assert leases == 1
    assert len(queries()) > 40
    for query in queries():  # a rate wants two scrapes
        wait_for(partial(prometheus.answers, query), START_TIMEOUT_S, f"an answer to {query}")
    assert prometheus.firing() == {}
    daemon.kill()
    wanted = {"InfiniswapPeerDown", "InfiniswapDonorDown"}
    wait_for(lambda: wanted <= prometheus.firing().keys(), START_TIMEOUT_S, "the alerts")
    fired = prometheus.firing()
    assert fired["InfiniswapPeerDown"]["peer"] == daemon.address
    assert fired["InfiniswapPeerDown"]["code"] == "PEER_DOWN"
    assert fired["InfiniswapPeerDown"]["device"] == "vol"
