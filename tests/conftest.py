"""Fixtures that every test module may use, how tests are shared among workers, and the rule on skips.

With pytest-xdist one worker runs a whole module, so that what its fixtures start is started once. With CI=true only the
listed skips pass.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from pipelines import log_lines
from tests.nodes.alone import reason
from tests.nodes.boxes import taken_for_one
from tests.support.postgres import Cluster, cluster
from tests.support.server_process import Server, serving
from tests.support.stores import object_store

# What a machine may honestly lack and .ci/run can't install; any other skip fails the suite when CI=true.
ALLOWED_SKIPS = ("needs a private mount namespace",)

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores. torch's threads on top of that, here and in servers, would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is taken for a server: one, or three behind HAProxy."""
    parser.addoption("--fleet", action="store_true", help="three servers behind HAProxy in place of each")


@pytest.fixture(scope="session", autouse=True)
def fleet(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--fleet`, each server that a test starts is three behind HAProxy, by one PostgreSQL."""
    if not request.config.getoption("--fleet"):
        yield
        return
    with cluster("max_connections=500") as database, taken_for_one(database):
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def untimed() -> Iterator[None]:
    """Each test chooses its kernels by rule, whatever an engine of this process has been told to time."""
    yield
    if choices := sys.modules.get("pipelines.model.kernels.choices"):
        choices.use(choices.Choices())


@pytest.fixture(autouse=True)
def unlogged() -> Iterator[None]:
    """Each test finds the loggers as they are at first, whatever a program of this process has made of them."""
    loggers = [logging.getLogger(name) for name in (None, *log_lines.OURS)]
    levels, hooks = [each.level for each in loggers], (sys.excepthook, threading.excepthook)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def instant() -> Iterator[Server]:
    """One server with the engine that has no model, http and https, shared by tests that leave it as they found it."""
    with serving("--model", "instant:5", "--tls-port", "0") as server:
        yield server


@pytest.fixture(scope="session")
def demo() -> Iterator[Server]:
    """One server with the built-in model, http and https, shared by tests that leave it as they found it."""
    with serving("--model", "demo", "--tls-port", "0") as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One PostgreSQL, shared by tests that each have a database of their own in it and leave it running."""
    with cluster() as running:
        yield running


@pytest.fixture(scope="session")
def s3() -> Iterator[object_store.S3]:
    """One S3-speaking server; each test takes buckets of its own."""
    with object_store.s3_server() as server:
        yield server


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `--files` says for one of `object_store.PLACES`, with the variables that it needs."""
    if request.param == "disk":
        return ""
    if request.param == "folder":
        return f"file://{tmp_path_factory.mktemp('shared')}"
    server = request.getfixturevalue("s3")
    monkeypatch = request.getfixturevalue("monkeypatch")
    for name, value in {**object_store.VARIABLES, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    return server.bucket()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the modules that take long: one left for the end would keep the other workers waiting.

    With `--fleet`, leave out what holds of one server only.
    """
    if config.getoption("--fleet"):
        config.hook.pytest_deselected(items=[item for item in items if reason(item.nodeid)])
        items[:] = [item for item in items if not reason(item.nodeid)]
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn a skip that is not allowed into a failure on CI."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped on CI, and the reason is not on the list of allowed ones: {reason}"
    return report
