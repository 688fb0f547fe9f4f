"""A headless Chromium, driven by Debian's chromedriver in the W3C WebDriver protocol: no package is needed for that."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.support.output import Output
from tests.support.pace import paced

START_TIMEOUT_S = paced(60.0)
COMMAND_TIMEOUT_S = paced(60.0)
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


class Browser:
    """One session with one window."""

    def __init__(self, driver_url: str, profile: str) -> None:
        """profile: an empty folder, the browser's own."""
        self._base = f"{driver_url}/session"
        options = {"args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/{session['sessionId']}"

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._base + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=COMMAND_TIMEOUT_S) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        """Go there and wait until it is loaded."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the script returns, run as the body of a function in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the Chrome DevTools Protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def show_as(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """A window of that size in pixels, in light or dark."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def key(self, name: str) -> None:
        """Press a key in what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.devtools("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def close(self) -> None:
        """End the session and the browser."""
        self._call("DELETE", "")


def _port(output: Output) -> int:
    while (line := output.line(START_TIMEOUT_S)) is not None:
        if found := re.search(r"successfully on port (\d+)", line):
            return int(found.group(1))
    raise AssertionError("chromedriver does not start")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own; all of it is ended and removed afterwards."""
    program = shutil.which("chromedriver")
    assert program is not None, "chromedriver is missing: Debian's package chromium-driver"
    profile = tempfile.mkdtemp(prefix="isw-browser-")
    driver = subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert driver.stdout is not None
        session = Browser(f"http://127.0.0.1:{_port(Output(driver.stdout.fileno()))}", profile)
        try:
            yield session
        finally:
            session.close()
    finally:
        driver.terminate()
        driver.wait(START_TIMEOUT_S)
        assert driver.stdout is not None
        driver.stdout.close()
        shutil.rmtree(profile, ignore_errors=True)
