"""A headless Chromium driven through its DevTools protocol over a pipe: pages, what they say on the console, what they
ask of the network, pictures. Needs Debian's package chromium alone."""
import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def program():
    """The browser's path, or None."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Browser:
    """`with Browser() as b: page = b.open(path, width=1280, dark=True)`. Messages are JSON, each ended by a zero byte:
    file descriptor 3 of the browser takes commands, 4 gives replies and events."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="cairn-browser-")
        command_read, self.write_end = os.pipe()
        self.read_end, reply_write = os.pipe()
        # The pipes have to be 3 and 4 in the browser; a shell puts them there.
        line = f'exec "$0" "$@" 3<&{command_read} 4>&{reply_write}'
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--mute-audio",
                 "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
                 "--remote-debugging-pipe", f"--user-data-dir={self.folder}/profile"]
        self.process = subprocess.Popen(["bash", "-c", line, program(), *flags], pass_fds=(command_read, reply_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(command_read)
        os.close(reply_write)
        self.buffer, self.number, self.events = b"", 0, []
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close", timeout=5)
            self.process.wait(5)
        except Exception:  # noqa: BLE001: it ends one way or the other
            self.process.kill()
            self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)
        shutil.rmtree(self.folder, ignore_errors=True)

    def receive(self, until):
        """The next message, or None after the time `until`."""
        while b"\0" not in self.buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read_end], [], [], left)[0]:
                return None
            part = os.read(self.read_end, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, timeout=60, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + timeout
        while (reply := self.receive(until)) is not None:
            if reply.get("id") == self.number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)
        raise TimeoutError(f"{method}: no answer in {timeout} s")

    def open(self, path, width=1280, height=900, dark=False, touch=False):
        return Page(self, path, width, height, dark, touch)


class Page:
    def __init__(self, browser, path, width, height, dark, touch):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        if touch:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.wait("document.readyState === 'complete'")  # of about:blank, whose loading would abort the page's
        browser.events.clear()
        went = self.call("Page.navigate", url=pathlib.Path(path).absolute().as_uri())
        assert "errorText" not in went, went
        self.wait("location.protocol === 'file:' && document.readyState === 'complete'")

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, **params)

    def value(self, expression):
        """What a JavaScript expression is, promises awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails'].get('exception', done['exceptionDetails'])}")
        return done["result"].get("value")

    def wait(self, expression, timeout=60):
        until = time.monotonic() + timeout
        while not self.value(expression):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} did not come true in {timeout} s; {self.value('location.href + document.readyState')}; errors: {self.errors()}")
            time.sleep(0.05)

    def _mine(self):
        return [event for event in self.browser.events if event.get("sessionId") == self.session]

    def errors(self):
        """Errors and warnings of the console, uncaught exceptions, log entries."""
        found = []
        for event in self._mine():
            params = event.get("params", {})
            if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("exception", {}).get("description", params["exceptionDetails"])))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    def requests(self):
        """Addresses that the page asked for, but for itself and what it holds."""
        urls = [event["params"]["request"]["url"] for event in self._mine() if event["method"] == "Network.requestWillBeSent"]
        own = ("data:", "blob:", "about:")
        return [url for i, url in enumerate(urls) if not url.startswith(own) and not (url.startswith("file:") and i == 0)]

    def picture(self, path, whole=True):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
