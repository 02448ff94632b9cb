"""A page in Chromium with the fake camera, and what is measured of it from outside."""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

from benchmarks.harness.process import memory_mib
from tests.support.browsers.chromium import FAKE_CAMERA, Watch, chromium, program, said_by

WATCH = Path(__file__).with_name("watch.js").read_text()
EMPTY = (
    "for (const each of Object.values(__seen)) if (Array.isArray(each)) each.length = 0;"
    "__seen.changed = 0; __seen.since = performance.now()"
)
# Chromium's tasks of a thread.
TASK, MAIN_THREAD = "ThreadControllerImpl::RunTask", "CrRendererMain"


@contextlib.contextmanager
def browser(camera_fps):
    """Yield Chromium, whose camera gives 1280×720 pixels `camera_fps` times a second."""
    path = program() or sys.exit("Chromium is not installed.\nHint: install the system's package `chromium`.")
    with chromium(path, f"{FAKE_CAMERA[0]}=fps={camera_fps}", *FAKE_CAMERA[1:]) as started:
        yield started


class Visit:
    """A page with a fresh profile for the server at `url`; empty until `open`."""

    def __init__(self, browser, url, faults=()):
        self._browser = browser
        context = browser.new_context(viewport={"width": 1280, "height": 800}, permissions=["camera"])
        self.watch = Watch(context, url)
        context.add_init_script(f"globalThis.__faults = {json.dumps([*faults])};\n{WATCH}")
        self.page = context.new_page()
        if "late" in faults:
            self.page.route(re.compile("app\\.js"), lambda route: (time.sleep(1), route.continue_()))
        self._url, self._context = url, context

    def open(self):
        self.page.goto(self._url, wait_until="commit")

    def go_live(self, warm_up):
        """Start camera and live, and forget what was seen in the first `warm_up` seconds."""
        self.page.locator("[data-state=READY], [data-state=BUSY]").wait_for(timeout=120_000)
        for name in ("Camera", "Live"):
            self.page.get_by_role("button", name=name, exact=True).click()
        self.page.locator(".speed").wait_for()
        self.wait(warm_up)
        said_by(self.page, EMPTY)

    def wait(self, seconds):
        self.page.wait_for_timeout(seconds * 1e3)

    def seen(self):
        """Return what `watch.js` has written down, and for how many seconds."""
        return said_by(self.page, "({...__seen, seconds: (performance.now() - __seen.since) / 1e3})")

    def tasks(self, seconds):
        """Return wall and processor milliseconds of each task of the page's main thread, by a trace."""
        session, events, ended = self._browser.new_browser_cdp_session(), [], []
        session.on("Tracing.dataCollected", lambda told: events.extend(told["value"]))
        session.on("Tracing.tracingComplete", lambda told: ended.extend([told]))
        config = {"includedCategories": ["toplevel"], "excludedCategories": ["*"]}
        session.send("Tracing.start", {"transferMode": "ReportEvents", "traceConfig": config})
        self.wait(seconds)
        session.send("Tracing.end")
        while not ended:
            self.page.wait_for_timeout(20)
        session.detach()
        threads = [(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name" and MAIN_THREAD in str(e["args"])]
        tasks = {thread: [] for thread in threads}
        for event in events:
            thread = event["pid"], event["tid"]
            if event["name"] == TASK and event["ph"] == "X" and thread in tasks:
                tasks[thread].append((event["dur"] / 1e3, event.get("tdur", 0) / 1e3))
        return max(tasks.values(), key=len)

    def memory(self):
        """Return MiB: the page's heap after a collection, and its process."""
        session = self._context.new_cdp_session(self.page)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"] / 2**20
        session.detach()
        session = self._browser.new_browser_cdp_session()
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        session.detach()
        renderers = [memory_mib(process["id"]) for process in processes if process["type"] == "renderer"]
        return {"heap": heap, "renderer": max(renderers)}

    def close(self):
        self.page.unroute_all(behavior="ignoreErrors")
        self._context.close()
