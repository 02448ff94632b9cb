"""The programs in examples/, each run as a newcomer would."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import expect

from server.webhooks.delivery import signed_headers
from server.webhooks.signing_keys import SigningKeys
from tests.clients.conftest import WEBHOOKS_HERE, by_environment
from tests.clients.kit import JS, Clients, bun, install_javascript, node
from tests.support.browsers.chromium import chromium
from tests.support.browsers.chromium import program as browser_program
from tests.support.server_process import APP, CALL, clean_env, serving, until

EXAMPLES = Path(__file__).parents[2] / "examples"
BEACH = Path(__file__).parents[2] / "server/static/beach.jpg"
KEY = "shop:0123456789abcdef"
TRIED = {"batch.py", "curl.sh", "drawing", "javascript.mjs", "keys.sh", "proxy.mjs", "python.py", "webhook.py"}


@pytest.fixture(scope="module")
def shop():
    """A server that decodes pictures, has one key, and may call receivers of this machine."""
    flags = ("--model", "instant+jpeg:5", "--tls-port", "0", *WEBHOOKS_HERE)
    with serving(*flags, env={"FOURSTEP_KEYS": KEY}) as server:
        yield server


def test_every_example_is_tried():
    assert {path.name for path in EXAMPLES.iterdir()} - {"__pycache__"} == TRIED


# --- one picture ----------------------------------------------------------------------------------------------------


def python_command(folder):
    return [sys.executable, str(EXAMPLES / "python.py")]


def javascript_command(folder):
    install_javascript()
    (folder / "node_modules").symlink_to(JS / "node_modules")
    # Node looks for packages beside the program.
    return [node(), "--no-warnings", shutil.copy(EXAMPLES / "javascript.mjs", folder)]


def curl_command(folder):
    return ["sh", str(EXAMPLES / "curl.sh")]


@pytest.mark.parametrize("own", [[], [str(BEACH)]], ids=["sample", "own picture"])
@pytest.mark.parametrize("command", [python_command, javascript_command, curl_command])
def test_the_example_writes_a_picture(command, own, instant, by_environment, tmp_path):
    env = clean_env({**by_environment.env, "SERVER_URL": instant.url})

    done = subprocess.run(
        [*command(tmp_path), *own], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("output.jpg")
    assert "seed 42" in done.stdout
    assert (tmp_path / "output.jpg").read_bytes().startswith(b"\xff\xd8")


# --- a folder of pictures -------------------------------------------------------------------------------------------


def batch(clients: Clients, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / "batch.py"), *map(str, arguments)]
    return subprocess.run(command, env=clean_env(clients.env), capture_output=True, text=True, timeout=60, check=False)


def test_a_folder_is_repainted_and_an_interrupted_run_goes_on(by_environment, tmp_path):
    pictures, output = tmp_path / "pictures", tmp_path / "output"
    pictures.mkdir()
    for name in ("a.jpg", "b.JPG", "c.jpeg"):
        shutil.copy(BEACH, pictures / name)
    (pictures / "notes.txt").write_text("no picture")

    first = batch(by_environment, pictures, output, "a beach")
    (output / "b.JPG.jpg").unlink()
    second = batch(by_environment, pictures, output, "a beach")

    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[0] == "3 pictures, 0 done before"
    assert (second.returncode, second.stdout.splitlines()[0]) == (0, "3 pictures, 2 done before")
    assert sorted(path.name for path in output.iterdir()) == ["a.jpg.jpg", "b.JPG.jpg", "c.jpeg.jpg"]


def test_a_picture_that_is_none_is_named_and_the_others_are_done(shop, picture, tmp_path):
    pictures, output = tmp_path / "pictures", tmp_path / "output"
    pictures.mkdir()
    shutil.copy(BEACH, pictures / "good.jpg")
    (pictures / "bad.jpg").write_text("no picture")

    done = batch(by_environment(shop, picture).with_env(FAL_KEY=KEY), pictures, output, "a beach")

    assert (done.returncode, done.stderr) == (1, "")
    assert "bad.jpg: " in done.stdout
    assert done.stdout.endswith(f"1 of 2 are in {output}\n")


def test_without_its_arguments_the_batch_says_how_it_is_run(by_environment):
    assert "python examples/batch.py PICTURES OUTPUT" in batch(by_environment).stderr


# --- programs that stay ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def program(*command: str, folder: Path, **env: str) -> Iterator[str]:
    """The URL that a program has printed once it listens; the program ends with the block."""
    said = folder / "said"
    with (
        said.open("w") as output,
        subprocess.Popen(command, cwd=folder, env=clean_env({"PORT": "0", **env}), stdout=output) as running,
    ):
        try:
            until(lambda: said.read_text().endswith("\n"))
            yield said.read_text().strip()
        finally:
            running.terminate()


def proxy(server, *arguments: str, folder: Path) -> contextlib.AbstractContextManager[str]:
    return program(node(), str(EXAMPLES / "proxy.mjs"), *arguments, folder=folder, SERVER_URL=server.url, FAL_KEY=KEY)


def test_the_proxy_adds_the_key_which_its_pages_do_not_have(shop, picture, tmp_path):
    page = Clients({"PICTURE": picture})
    with proxy(shop, folder=tmp_path) as app:
        [subscribed] = page.js("subscribe.mjs", proxy=f"{app}/api/fal/proxy")
        with pytest.raises(AssertionError, match="401"):
            page.js("run.mjs", proxy=f"{shop.url}/api/fal/proxy")
        shown = urllib.request.urlopen(app).read().decode()

    assert subscribed["result"]["data"]["seed"] == 7
    assert "draw.mjs" in shown
    assert KEY not in shown


def test_the_proxy_serves_its_folder_and_nothing_beside_it(shop, tmp_path):
    with proxy(shop, folder=tmp_path) as app:
        for path in ("/proxy.mjs", "/../proxy.mjs", "/%2e%2e/proxy.mjs", "/..%2fproxy.mjs"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(app + path)


STROKE = """(() => {
  const canvas = document.querySelector("canvas");
  canvas.setPointerCapture = () => {};
  const at = (type, x) => canvas.dispatchEvent(
    new PointerEvent(type, { clientX: x, clientY: canvas.getBoundingClientRect().top + 50, buttons: 1 }));
  at("pointerdown", 100);
  at("pointermove", 200);
})()"""


def test_the_page_draws_by_realtime(shop, tmp_path):
    path = browser_program()
    if path is None:
        pytest.skip("needs Chromium")
    install_javascript()
    folder = shutil.copytree(EXAMPLES / "drawing", tmp_path / "drawing")
    entry, client, script = tmp_path / "entry.mjs", folder / "fal-client.js", folder / "draw.mjs"
    entry.write_text('export { fal } from "@fal-ai/client"')
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    subprocess.run([bun(), "build", str(entry), "--outfile", str(client)], capture_output=True, check=True)
    assert "http://localhost:8000" in script.read_text()
    script.write_text(script.read_text().replace("http://localhost:8000", shop.url))

    with proxy(shop, str(folder), folder=tmp_path) as app, chromium(path) as browser:
        page = browser.new_page()
        page.goto(app)
        page.evaluate(STROKE)

        expect(page.get_by_role("status")).to_have_text(re.compile(r" ms$"))
        assert page.evaluate("document.querySelector('img').naturalWidth") > 0


# --- webhooks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(shop, tmp_path):
    """The URL of the receiver; what it says and saves is in `tmp_path`."""
    with program(sys.executable, str(EXAMPLES / "webhook.py"), folder=tmp_path, SERVER_URL=shop.url) as url:
        yield url


def answer(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """The status of a POST."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answered:
            return answered.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_signed_webhook_saves_its_picture(shop, receiver, tmp_path):
    submit = f"{shop.url}/queue/{APP}?fal_webhook={receiver}"
    headers = {"Content-Type": "application/json", "Authorization": f"Key {KEY}"}
    request = urllib.request.Request(submit, json.dumps(CALL | {"sync_mode": False}).encode(), headers)
    saved = tmp_path / (json.load(urllib.request.urlopen(request))["request_id"] + ".jpg")

    until(lambda: f"{saved.name}, seed 7" in (tmp_path / "said").read_text())
    assert saved.read_bytes().startswith(b"\xff\xd8")


def test_a_webhook_that_is_forged_altered_or_old_is_refused(shop, receiver, tmp_path):
    job, now = "0f0e7d5c-3ad1-4b6b-9a7f-0d4b6c1d2e3f", time.time()
    body = json.dumps({"request_id": job, "status": "ERROR", "error": "an example"}).encode()
    ours, others = SigningKeys(shop.data_dir / "webhook-keys.json"), SigningKeys(tmp_path / "others.json")
    signed = signed_headers(ours, job, "shop", body, now)

    refused = {
        "not signed": answer(receiver, body, {}),
        "by another key": answer(receiver, body, signed_headers(others, job, "shop", body, now)),
        "altered": answer(receiver, body + b" ", signed),
        "old": answer(receiver, body, signed_headers(ours, job, "shop", body, now - 900)),
        "without a time": answer(receiver, body, signed | {"X-Fal-Webhook-Timestamp": "soon"}),
    }
    assert refused == dict.fromkeys(refused, 401)
    assert job not in (tmp_path / "said").read_text()
    assert answer(receiver, body, signed) == 200
    assert f"{job}: an example" in (tmp_path / "said").read_text()


# --- several apps ---------------------------------------------------------------------------------------------------


def test_several_apps_have_keys_of_their_own(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = clean_env({"MODEL": "instant", "PORT": port, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})

    done = subprocess.run(
        ["sh", str(EXAMPLES / "keys.sh")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert dict(re.findall(r"^(.+?): +(\d+)$", done.stdout, re.MULTILINE)) == {
        "shop": "200",
        "a stranger": "401",
        "shop's own job": "200",
        "seen by nightly": "404",
        "nightly, revoked": "401",
    }
