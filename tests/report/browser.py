"""A headless Chromium driven over its debugging pipe: nothing to install but the browser."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--hide-scrollbars", "--mute-audio", "--remote-debugging-pipe"),
)


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    def __init__(self):
        self._profile = tempfile.mkdtemp(prefix="loopjax-chromium-")
        to_child, self._send = os.pipe()
        self._receive, from_child = os.pipe()
        command = [find_chromium(), *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        # Chromium reads commands on descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(to_child, from_child),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._count, self._buffer, self._session = 0, b"", None
        self.errors = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self._process.terminate()
        self._process.wait(10)
        os.close(self._send)
        os.close(self._receive)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method, **params):
        number = self._write(method, **params)
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _write(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        return self._count

    def _next(self):
        while b"\0" not in self._buffer:
            chunk = os.read(self._receive, 1 << 20)
            assert chunk, "the browser went away"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"])
        elif event.get("method") == "Page.javascriptDialogOpening":  # which holds up everything
            self.errors.append(params)
            self._write("Page.handleJavaScriptDialog", accept=True)
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(params["args"])

    def open(self, path, width=1280, height=900, scheme="light"):
        self.errors.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        address = str(path)
        url = address if address.startswith("http") else Path(path).as_uri()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !!window.loopjaxReport")

    def run(self, script):
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.03)

    def click(self, selector):
        """A real mouse click on the middle of the first match."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        self.click_at(*place)

    def click_at(self, x, y):
        """A real mouse click at a place of the window."""
        self.drag([(x, y)])

    def drag(self, places):
        """Presses the button at the first place, moves to the others, and releases it."""
        self._mouse("mouseMoved", places[0])
        self._mouse("mousePressed", places[0])
        for place in places[1:]:
            self._mouse("mouseMoved", place)
        self._mouse("mouseReleased", places[-1])

    def _mouse(self, kind, place):
        held = {"buttons": 1} if kind == "mouseMoved" else {}
        self.call(
            "Input.dispatchMouseEvent",
            type=kind, x=place[0], y=place[1], button="left", clickCount=1, **held,
        )  # fmt: skip

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key)

    def press_named(self, key):
        """A key without a character, such as "ArrowLeft"."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def choose_file(self, selector, path):
        """Gives a file to an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def violations(browser):
    """What axe finds against the accessibility of the page as it stands."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    browser.run((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    return browser.run(
        "axe.run(document).then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
    )
