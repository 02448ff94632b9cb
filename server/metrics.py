"""Metrics in Prometheus' format. Labels name functions, states and devices, never what a caller sent."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

# prometheus_client adds a creation time to each counter, which no reader needs.
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in prometheus_client

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: from a cached status answer to a request which waits for a slow CPU.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class _Engines(Collector):
    """The series of the engines, made anew at each scrape: a device that has another name now leaves none behind.

    Engines on one device are one series: 1 if one of them is, and the sum of their restarts.
    """

    def __init__(self) -> None:
        self.present: Sequence[Mapping[str, Any]] = ()

    @override
    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("fourstep_engine_ready", "1 for a device that takes work", labels=["device"])
        unloaded = GaugeMetricFamily(
            "fourstep_engine_unloaded",
            "1 for a device that was given back (idle-unload) and is loaded again by the next call",
            labels=["device"],
        )
        restarts = GaugeMetricFamily(
            "fourstep_engine_restarts", "Times that a device's process was replaced", labels=["device"]
        )
        graphs_failed = GaugeMetricFamily(
            "fourstep_engine_graphs_failed",
            "1 for a device that does without CUDA graphs because they can't be captured",
            labels=["device"],
        )
        for device in dict.fromkeys(engine["device"] for engine in self.present):
            here = [engine for engine in self.present if engine["device"] == device]
            ready.add_metric([device], any(engine["state"] in {"READY", "BUSY"} for engine in here))
            unloaded.add_metric([device], any(engine["state"] == "UNLOADED" for engine in here))
            restarts.add_metric([device], sum(engine["restarts"] for engine in here))
            graphs_failed.add_metric([device], any(engine["graphs_failed"] for engine in here))
        yield from (ready, unloaded, restarts, graphs_failed)


class _Cluster(Collector):
    """The series of a server that shares its database, made anew at each scrape; no samples of one that is alone."""

    def __init__(self) -> None:
        self.present: Mapping[str, Any] | None = None

    @override
    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("fourstep_database_up", "1 while the database that servers share can be reached")
        nodes = GaugeMetricFamily(
            "fourstep_nodes", "Servers on that database, by state: running, leaving, silent", labels=["state"]
        )
        claims = CounterMetricFamily(
            "fourstep_claims", "Looks for jobs in that database, by result: jobs, none", labels=["result"]
        )
        fenced = CounterMetricFamily(
            "fourstep_fenced", "Results refused since another server had the job, or it had ended"
        )
        if self.present is not None:
            up.add_metric([], self.present["up"])
            for state, count in self.present["nodes"].items():
                nodes.add_metric([state], count)
            for result, count in self.present["claims"].items():
                claims.add_metric([result], count)
            fenced.add_metric([], self.present["fenced"])
        yield from (up, nodes, claims, fenced)


class Metrics:
    """The server's metrics. Each app has its own, so that tests do not share them."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fourstep_requests_total", "Answers by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fourstep_request_seconds", "Time to answer", ["route"], buckets=_BUCKETS, registry=self._registry
        )
        self._inference = Histogram(
            "fourstep_inference_seconds", "Time in the engine", ["priority"], buckets=_BUCKETS, registry=self._registry
        )
        self._stages = Counter(
            "fourstep_stage_seconds",
            "Seconds of finished requests by stage; wait is beside the others, for another stream of the device",
            ["stage"],
            registry=self._registry,
        )
        self._images = Counter("fourstep_images_total", "Finished images", registry=self._registry)
        self._flagged = Counter("fourstep_images_flagged_total", "Images blackened as unsafe", registry=self._registry)
        self._dropped = Counter(
            "fourstep_realtime_dropped_total", "Realtime inputs dropped for newer ones", registry=self._registry
        )
        self._sessions = Gauge("fourstep_realtime_sessions", "Open realtime sockets", registry=self._registry)
        self._queue = Gauge("fourstep_queue_length", "Jobs that wait", registry=self._registry)
        self._memory = Gauge(
            "fourstep_body_bytes",
            "Bytes held of the budget for bodies, messages and fetched pictures",
            registry=self._registry,
        )
        self._lookups = Counter(
            "fourstep_lookups_abandoned_total",
            "Look-ups of host names that no caller waited for any longer",
            registry=self._registry,
        )
        self._stored = Gauge(
            "fourstep_stored_bytes", "Disk taken by stored files, of files-quota-bytes", registry=self._registry
        )
        self._files = Gauge("fourstep_stored_files", "Files on disk, of max-stored-files", registry=self._registry)
        self._build = Gauge(
            "fourstep_build_info",
            "1; the labels say what runs, those of the engines once they are ready",
            ["version", "torch", "model", "dtype"],
            registry=self._registry,
        )
        self._database = Histogram(
            "fourstep_database_seconds",
            "Time of an operation of the database that servers share, with what it waited and repeated",
            ["operation"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._wait = Gauge(
            "fourstep_queue_wait_seconds",
            "Expected wait of a job submitted now, by recent work and what all engines do at once",
            registry=self._registry,
        )
        self._cluster = _Cluster()
        self._registry.register(self._cluster)
        self._engines = _Engines()
        self._registry.register(self._engines)
        self._children: dict[Any, Any] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request or a websocket which has ended, and its seconds."""
        key = (route, status)
        if key not in self._children:
            self._children[key] = self._requests.labels(route, str(status)), self._seconds.labels(route)
        count, histogram = self._children[key]
        count.inc()
        if status != 101:
            histogram.observe(seconds)

    def generated(self, priority: str, timings: Mapping[str, float], flags: Sequence[bool]) -> None:
        """Count a request's finished pictures and its seconds (`Generated.timings`); `flags`: which are unsafe."""
        self._inference.labels(priority).observe(timings["inference"])
        for stage, spent in timings.items():
            if stage == "inference":
                continue
            if stage not in self._children:
                self._children[stage] = self._stages.labels(stage)
            self._children[stage].inc(spent)
        self._images.inc(len(flags))
        self._flagged.inc(sum(flags))

    def dropped(self, count: int) -> None:
        """Count realtime inputs which were dropped for newer ones."""
        self._dropped.inc(count)

    def lookup_abandoned(self) -> None:
        """Count a look-up of a host name whose caller has left before its end."""
        self._lookups.inc()

    def database(self, operation: str, seconds: float) -> None:
        """Count an operation of the database that servers share."""
        if ("database", operation) not in self._children:
            self._children["database", operation] = self._database.labels(operation)
        self._children["database", operation].observe(seconds)

    def session_opened(self) -> None:
        """Count an accepted realtime socket."""
        self._sessions.inc()

    def session_closed(self) -> None:
        """Count a realtime socket which has ended."""
        self._sessions.dec()

    def stored(self, size: int, files: int) -> None:
        """Say how many bytes of disk and how many files are taken at present."""
        self._stored.set(size)
        self._files.set(files)

    def queued(self, length: int, wait_s: float) -> None:
        """Say how many jobs wait at present, and how long one more would."""
        self._queue.set(length)
        self._wait.set(wait_s)

    def shared(self, present: Mapping[str, Any]) -> None:
        """Say how the database is, and the other servers: `Cluster.samples`."""
        self._cluster.present = present

    def render(self, engines: Sequence[Mapping[str, Any]], body_bytes: int) -> bytes:
        """Return all metrics in Prometheus' text format, with the present state of engines and memory."""
        self._memory.set(body_bytes)
        self._build.clear()
        ready = {(engine["torch"], engine["model"], engine["dtype"]) for engine in engines if engine["model"]}
        for labels in ready or {("", "", "")}:
            self._build.labels(self._version, *labels).set(1)
        self._engines.present = engines
        return generate_latest(self._registry)
