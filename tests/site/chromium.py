"""A headless Chromium, driven by its own DevTools protocol over two pipes: no driver, no port, no package.

Chromium reads commands from file descriptor 3 and writes answers and events to 4, each a JSON object that ends in a
zero byte. It ends with this process, because then the pipes close.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # that an answer may take
OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
)  # fmt: skip


def find() -> str | None:
    """Where Chromium is, None if it isn't installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A browser with one tab.

    problems: errors of scripts, of the console and of loading, since the last `open`
    requests: the addresses that the page asked for since then
    """

    def __init__(self, program: str, profile: Path) -> None:
        import fcntl  # not on Windows, where other tests run all the same

        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]  # neither is 3 or 4 now

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=place, pass_fds=(3, 4),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (commands, answers, *ends):
            os.close(end)
        self._buffer, self._number, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for its answer. Raises RuntimeError with what Chromium says is wrong."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._events.append(answer)

    def _next(self) -> dict[str, Any]:
        """The next message."""
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            more = os.read(self._answers, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError("Chromium doesn't answer" if not ready else "Chromium has ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """From now on, show pages in this size, in CSS pixels, to somebody who prefers light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Load a page, and wait until all that belongs to it is there."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        self.run("0")  # what the page's scripts said while it loaded comes before this answer

    @property
    def problems(self) -> list[str]:
        """See above."""
        found = []
        for event in self._events:
            name, said = event["method"], event["params"]
            if name == "Runtime.exceptionThrown":
                found.append(said["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            elif name == "Runtime.consoleAPICalled" and said["type"] in {"error", "warning", "assert"}:
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in said["args"]))
            elif name == "Log.entryAdded" and said["entry"]["level"] in {"error", "warning"}:
                found.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
            elif name == "Network.loadingFailed" and not said.get("canceled"):
                found.append(said["errorText"])
        return found

    @property
    def requests(self) -> list[str]:
        """See above."""
        sent = [event["params"] for event in self._events if event["method"] == "Network.requestWillBeSent"]
        return [said["request"]["url"] for said in sent]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page. Raises RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true. Raises TimeoutError."""
        deadline = time.monotonic() + SECONDS
        while not self.run(script):
            if time.monotonic() > deadline:
                raise TimeoutError(script)
            time.sleep(0.02)

    def press(self, key: str, code: str) -> None:
        """Press and release a key, as a keyboard would; key " " with code "Space" is the space bar."""
        text = {"text": key} if len(key) == 1 else {}
        number = {"ArrowLeft": 37, "ArrowRight": 39, "Space": 32}.get(code, 0)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number,
                      **(text if kind == "keyDown" else {}))  # fmt: skip

    def picture(self, path: Path, whole: bool = True) -> None:
        """Write what is shown as a PNG; the whole page, or the part that one sees first."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
