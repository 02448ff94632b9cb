"""The eleven snippets of the Code panel: each makes a picture as it is copied, and says what is on screen."""

import ast
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.page.snippets import ALL, VALUES, evaluated, run, snippet
from tests.support.server_process import serving

KEY = "me:a-long-secret"


@pytest.fixture(scope="module")
def open_server():
    with serving("--model", "instant+jpeg:5", "--tls-port", "0") as server:
        yield server


@pytest.fixture(scope="module")
def shut_server():
    with serving("--model", "instant+jpeg:5", "--tls-port", "0", env={"FOURSTEP_KEYS": KEY}) as server:
        yield server


def test_these_are_all():
    calls = evaluated("CALLS")

    assert [(language, call) for language in calls for call in calls[language]] == ALL
    assert len(ALL) == 11


@pytest.mark.parametrize(("language", "call"), ALL)
def test_a_snippet_with_a_file_makes_a_picture(language, call, open_server, tmp_path):
    text = snippet(language, call, open_server.get("/openapi.json"), f"{open_server.url}/")

    done = run(text, language, tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output.jpg").read_bytes().startswith(b"\xff\xd8"), done.stdout + done.stderr
    assert text["note"] == ""


@pytest.mark.parametrize(("language", "call"), ALL)
def test_a_snippet_with_a_url_and_a_key_in_the_environment_makes_a_picture(language, call, shut_server, tmp_path):
    document = shut_server.get("/openapi.json")
    text = snippet(language, call, document, f"{shut_server.url}/", keys=True, picture="url")

    done = run(text, language, tmp_path, FAL_KEY=KEY)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output.jpg").read_bytes().startswith(b"\xff\xd8"), done.stdout + done.stderr


@pytest.mark.parametrize("language", ["JavaScript", "curl"])
def test_a_snippet_without_its_key_says_what_is_missing(language, shut_server, tmp_path):
    text = snippet(language, "run", shut_server.get("/openapi.json"), f"{shut_server.url}/", keys=True)

    done = run(text, language, tmp_path)

    assert done.returncode != 0
    assert "FAL_KEY: is not set. Hint: export FAL_KEY=id:secret" in done.stderr


@pytest.mark.parametrize("picture", ["file", "url"])
@pytest.mark.parametrize("language", ["JavaScript", "curl"])
def test_what_is_sent_is_what_is_on_screen(language, picture, tmp_path):
    heard = []

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_error(400)

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Recorder) as recorder:
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{recorder.server_port}/"
        run(snippet(language, "run", {"servers": []}, base, picture=picture), language, tmp_path)
        recorder.shutdown()

    assert heard[0].pop("image_url").startswith("data:image/jpeg;base64,/9j/" if picture == "file" else "https://")
    assert heard[0] == {name: value for name, value in VALUES.items() if name != "num_images"}  # 1 is the default


def test_python_is_told_what_is_on_screen():
    program = snippet("Python", "queue", {"servers": []}, "http://localhost:8000/")["program"]

    [given] = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Dict)]
    told = {key.value: value for key, value in zip(given.keys, given.values, strict=True)}
    assert ast.unparse(told.pop("image_url")) == "fal_client.encode_file('input.jpg')"
    assert {name: ast.literal_eval(value) for name, value in told.items()} == {
        name: value for name, value in VALUES.items() if name != "num_images"
    }


LOCAL_CA = {"names": ["localhost", "127.0.0.1", "::1", "*.box.lan"]}


@pytest.mark.parametrize(
    ("base", "servers", "note", "host"),
    [
        ("http://localhost:8000/", [], "start the server with `--tls-port 8443`", "localhost:8443"),
        ("http://10.0.0.7:8000/", [], "with `--tls-port 8443 --tls-names 10.0.0.7`", "10.0.0.7:8443"),
        (
            "http://10.0.0.7:8000/",
            ["https://10.0.0.7:8443"],
            "start it with `--tls-names 10.0.0.7` too",
            "10.0.0.7:8443",
        ),
        ("http://gpu.box.lan:8000/", ["https://gpu.box.lan:8443"], "", "gpu.box.lan:8443"),
        ("http://[::1]:8000/", ["https://[::1]:8443"], "", "[::1]:8443"),
        ("https://localhost:8443/", ["https://localhost:8443"], "", "localhost:8443"),
        ("https://box.example/fourstep/", ["https://box.example/fourstep"], "", "box.example/fourstep"),
    ],
)
def test_python_is_led_to_https_and_told_what_is_missing(base, servers, note, host):
    document = {"servers": [{"url": base[:-1]}, *({"url": url} for url in servers)], "x-local-ca": LOCAL_CA}

    text = snippet("Python", "run", document, base)

    assert f"FAL_RUN_HOST={host}/run FAL_QUEUE_RUN_HOST={host}/queue" in text["setup"]
    assert note in text["note"]
    assert bool(note) == bool(text["note"])


def test_a_public_certificate_needs_no_trust():
    document = {"servers": [{"url": "https://box.example"}], "x-local-ca": LOCAL_CA}

    texts = [snippet(language, call, document, "https://box.example/")["setup"] for language, call in ALL]

    assert not any(re.search(r"\.pem", text) for text in texts)
