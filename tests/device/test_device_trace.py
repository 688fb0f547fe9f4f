"""infiniswap device trace tells where slow requests of a real device spent their time."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from infiniswap.shared.errors import ExitCode
from tests.support.services import ANSWER_TIMEOUT_S, INFINISWAP, Services
from tests.support.waiting import wait_for

PAGE = 4096


def told(text: str) -> list[dict[str, Any]]:
    """Lines of --json."""
    return [json.loads(line) for line in text.splitlines()]


def test_where_page_ins_spent_their_time(services: Services) -> None:
    """Written to a peer, read from it, read where nothing is: each with its source, and steps in order."""
    daemon = services.daemon("64MiB")
    device = services.device("vol", "--map", "eager", "--trace-slower-than", "0", peers=[daemon])
    with device.connect() as client:
        client.write(0, b"x" * PAGE)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"], what="a slab with remote memory")
        client.write(3 * PAGE, b"y" * PAGE)
        client.flush()
        client.read(3 * PAGE, PAGE)
        client.read(9 * PAGE, PAGE)
    requests = told(services.command("device", "trace", "vol", "--json").stdout)
    of_page = {(each["command"], each["page"]): each for each in requests}
    page_out, page_in, zero = of_page["write", 3], of_page["read", 3], of_page["read", 9]
    assert (page_out["source"], page_out["peer"]) == ("write_remote", daemon.address)
    assert (page_in["source"], page_in["peer"]) == ("remote", daemon.address)
    assert (zero["source"], zero["peer"], zero["begun_us"]) == ("zero", None, None)
    for each in (page_out, page_in):
        assert 0 <= each["begun_us"] <= each["answered_us"] <= each["done_us"]
    table = services.command("device", "trace", "vol", "--last", "1").stdout.splitlines()
    assert len(table) == 2
    assert table[0].split()[:4] == ["TIME", "WHAT", "PAGE", "LENGTH"]
    assert max(map(len, table)) <= 110
    assert services.command("device", "trace", "vol", "--slow", "1000s", "--json").stdout == ""


def test_quick_ones_are_passed_over_until_asked_for(services: Services) -> None:
    """--remember changes it while the device runs, and --follow shows what comes."""
    device = services.device("vol", "--trace-slower-than", "1000s")
    with device.connect() as client:
        client.read(0, PAGE)
        done = services.command("device", "trace", "vol")
        assert done.stderr == "none: vol remembers what takes 1000.0s or longer\n"
        wrong = services.command("device", "trace", "vol", "--remember", "5")
        assert wrong.returncode == ExitCode.USAGE
        assert "write for example 200us, 5ms or 1.5s" in wrong.stderr
        command = [*INFINISWAP, "device", "trace", "vol", "--remember", "0", "--follow", "--json"]
        with subprocess.Popen(command, env=services.environment, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            wait_for(lambda: device.get("/v1/trace")["slower_than_us"] == 0, what="all to be remembered")
            client.read(7 * PAGE, PAGE)
            assert json.loads(following.stdout.readline())["page"] == 7
            following.terminate()
            following.wait(ANSWER_TIMEOUT_S)
