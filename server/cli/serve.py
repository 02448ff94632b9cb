"""`fourstep serve`: check that it may be reached, bind, print the addresses, serve until told to stop."""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import platform
import sys
import threading

from server import logs, memory
from server.access.auth import has_keys
from server.app import Parts, create_app
from server.cli import progress
from server.cli.launcher import RUN_FILE
from server.cli.output import sole_server
from server.cli.tools import every_device
from server.data_dir import prepare, read_secret, usable, write_whole
from server.environment import affordable_budget, version
from server.fal.hosts import parse_host
from server.nodes import forms
from server.settings import Settings, SettingsError
from server.transport import listen, open_files, sockets
from server.transport.sockets import Listeners
from server.web.origin_guard import is_loopback
from server.web.origins import origin_of
from server.webhooks.signing_keys import SigningKeys

LOG = logging.getLogger(__name__)

_SHIPPED = Parts()

# Exit status after a second Ctrl-C, as a shell has it for one that the first one ended.
STOPPED_AT_ONCE = 130


def run(settings: Settings, parts: Parts = _SHIPPED) -> int:
    """Serve until SIGTERM or SIGINT, and return 0. Raises `SettingsError` for what the operator has to change first."""
    os.umask(0o077)  # the job database and its log, too, are private
    prepare(settings.data_dir)
    _check_open(settings)
    _check_engines(settings)
    settings, warning = open_files.within(open_files.raise_limit(), settings)
    with (
        usable(settings.data_dir),
        sole_server(settings),
        contextlib.closing(sockets.bind(settings)) as listeners,
    ):
        logs.configure(settings.log_level, settings.log_format)
        threading.excepthook, sys.unraisablehook = _on_thread_error, _on_unraisable
        _say_budget(settings)
        _say_proxy(settings)
        if settings.device == "all":
            settings = dataclasses.replace(settings, device=every_device(settings))
        run_file = settings.data_dir / RUN_FILE

        def on_ready() -> None:
            # What was loaded stays. Full collections, which a thousand connections bring about, would stop all calls
            # for a tenth of a second to look through it.
            gc.freeze()
            _say_version(settings)
            urls = _urls(settings, listeners)
            write_whole(run_file, json.dumps({"pid": os.getpid(), **urls}).encode())
            if settings.log_format == "json":
                LOG.info("serving", extra=urls)
            else:
                sys.stderr.write(f"{banner(settings, urls, warning)}\n")

            watching.append(asyncio.create_task(progress.watch(app.state.ctx.pool, settings.log_format)))

        def on_drain() -> None:
            for task in watching:
                task.cancel()
            progress.say_stopping(app.state.ctx.queue, app.state.ctx.limits, settings.drain_timeout)
            app.drain()

        def on_second_signal() -> None:
            LOG.info("stopped at once: jobs go on at the next start")
            run_file.unlink(missing_ok=True)
            os._exit(STOPPED_AT_ONCE)  # as a kill would, which loses nothing; engines end with this process

        watching: list[asyncio.Task[None]] = []
        # Port 0 has become a port.
        tls_port = listeners.https.port if listeners.https else settings.tls_port
        settings = dataclasses.replace(settings, port=listeners.http.port, tls_port=tls_port)
        _join(settings)
        app = create_app(settings, parts)
        try:
            room = parts.room(settings.max_connections)
            listen.run(
                app.asgi,
                listeners,
                settings,
                room,
                on_ready=on_ready,
                on_drain=on_drain,
                on_close=app.close,
                on_second_signal=on_second_signal,
            )
            LOG.info("stopped")
        finally:
            run_file.unlink(missing_ok=True)
    return 0


def _join(settings: Settings) -> None:
    """Take over keys and secrets of the servers with which this one shares a database."""
    forms.check(settings)
    if settings.database:
        from server.nodes.cluster import join  # noqa: PLC0415 (an extra)

        asyncio.run(join(settings, lambda: _make_secrets(settings)))


def _make_secrets(settings: Settings) -> None:
    read_secret(settings.data_dir / "token.secret")
    read_secret(settings.files_dir / "upload.secret")
    SigningKeys(settings.webhook_keys_path)


def _on_thread_error(raised: threading.ExceptHookArgs) -> None:
    """Log what a thread has raised; end the process after a `MemoryError`."""
    if raised.exc_value is not None:
        logs.fault(f"the thread {raised.thread.name if raised.thread else ''}", raised.exc_value)


def _on_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Log what a callback from C has raised; end the process after a `MemoryError`.

    A TLS client whose host name is not ASCII got an alert, and its name is in no log.
    """
    if raised.exc_value is not None and not isinstance(raised.exc_value, UnicodeDecodeError):
        logs.fault(raised.err_msg or "a callback", raised.exc_value)


def _say_version(settings: Settings) -> None:
    """Say what runs. Not sooner: a server that can't start says why, and nothing else."""
    LOG.info(
        "fourstep %s on Python %s: --model %s --device %s --dtype %s",
        version(),
        platform.python_version(),
        settings.model,
        settings.device,
        settings.dtype,
    )


def _say_budget(settings: Settings) -> None:
    """Say that the memory for bodies is less than the default, or more than this process can afford."""
    limit = memory.limit_bytes()
    if limit is None:
        return
    budget, affordable = settings.body_budget_bytes, affordable_budget(limit, settings.max_body_bytes)
    if budget > affordable:
        LOG.warning("--body-budget-bytes %d: this process may use %d bytes; %d are safe", budget, limit, affordable)
    elif budget < Settings.body_budget_bytes:
        LOG.info("request bodies may take %d bytes (--body-budget-bytes): this process may use %d", budget, limit)


def _say_proxy(settings: Settings) -> None:
    """Say that other machines are served without keys, by a proxy whose address is this machine's."""
    host = parse_host(origin_of(settings.public_url).partition("://")[2]) if settings.public_url else None
    if host and not (is_loopback(host.name) or has_keys(settings) or settings.allow_anonymous):
        LOG.warning(
            "--public-url names %s, and there are no keys: behind a proxy everybody looks local, and may use the"
            " device. Hint: `fourstep keys add NAME`, or --allow-anonymous if anyone may",
            host.name,
        )


def _check_open(settings: Settings) -> None:
    """Refuse to serve other machines without keys: anyone who reaches the port could use the device."""
    if has_keys(settings) or settings.allow_anonymous or all(map(is_loopback, settings.addresses)):
        return
    raise SettingsError(
        f"--host {settings.host} opens the server to other machines, and there are no keys. "
        "Hint: `fourstep keys add NAME` or FOURSTEP_KEYS=id:secret; or --allow-anonymous if anyone may use it"
    )


def _check_engines(settings: Settings) -> None:
    """Refuse to accept jobs that no engine would do."""
    if not (settings.devices or settings.database):
        raise SettingsError(
            "--device none is for one of several boxes, whose jobs the others do. Hint: --device auto, or --database"
        )


def _urls(settings: Settings, listeners: Listeners) -> dict[str, str]:
    """Return the URLs for clients. https has a name that the certificate carries."""
    address = settings.addresses[0]
    host = f"[{address}]" if ":" in address else address
    return {
        "url": f"http://{host}:{listeners.http.port}",
        "tls_url": f"https://localhost:{listeners.https.port}" if listeners.https else "",
    }


def banner(settings: Settings, urls: dict[str, str], warning: str = "") -> str:
    """Return what a person needs first: the addresses, the page, which `Host` may open it, what clients are told."""
    closed = has_keys(settings)
    lines = [
        f"fourstep {version()} serves on {urls['url']}",
        f"  page: {_page(settings, urls['url'])} ({_opens(settings, closed=closed)})",
        f"  data: {settings.data_dir}",
    ]
    if closed:
        lines.append("  keys: clients need FAL_KEY=<id:secret>; `fourstep keys add NAME` makes one")
    if urls["tls_url"]:
        host = urls["tls_url"].partition("://")[2]
        lines += [
            f"  and on {urls['tls_url']}. fal's Python client, unchanged:",
            f"    export FAL_RUN_HOST={host}/run FAL_QUEUE_RUN_HOST={host}/queue",
            f"    export SSL_CERT_FILE={settings.tls_dir / 'bundle.pem'}" + ("" if closed else " FAL_KEY=any:thing"),
        ]
    if settings.takeover:
        lines.append(
            "  and on port 443 for fal's own host names; `fourstep hosts` prints the lines that send them here"
        )
    if warning:
        lines.append(f"  {warning}")
    return "\n".join(lines)


def _page(settings: Settings, url: str) -> str:
    """Return where a browser finds the page: on this machine, unless clients have a URL of their own."""
    if settings.public_url:
        return f"{settings.public_url.rstrip('/')}/"
    everywhere = {"localhost", "0.0.0.0", "::"}  # noqa: S104 (asked for, not opened)
    named = settings.host.lower().strip("[]") in everywhere
    return f"http://localhost:{url.rpartition(':')[2]}/" if named else f"{url}/"


def _opens(settings: Settings, *, closed: bool) -> str:
    """Return who may open the page: where the server listens, and what `server.web.origin_guard` lets in."""
    if settings.public_url or not all(map(is_loopback, settings.addresses)):
        return "on any machine, with a key" if closed else "on any machine, without a key"
    need = "--host 0.0.0.0" if closed else "`fourstep keys add NAME` and --host 0.0.0.0"
    return f"on this machine; for others: {need}"
