"""Every snippet of the endpoint's own page, verbatim, with fal's names taken over and no network at all.

`js/snippets/` has them as they stand on the page; a test may add a line that prints what the snippet got.
"""

import json
import subprocess

import pytest

from tests.clients.kit import JS, install_javascript, node
from tests.support.server_process import clean_env

SAMPLE_INPUT = {
    "prompt": "masterpiece, colorful, photo of a beach in hawaii, sun",
    "image_url": "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png",
    "strength": 0.8,
    "negative_prompt": "cartoon, illustration, animation. face. male, female",
    "seed": 42,
    "guidance_scale": 1,
    "num_inference_steps": 4,
    "num_images": 1,
    "enable_safety_checks": True,
}
PAGE_ID = "764cabcf-b745-4b3e-ae38-1200304cf45b"


@pytest.fixture
def run(takeover):
    """Run a snippet; return its stdout up to its end, or up to the word `until`."""
    install_javascript()

    def run(name: str, then: str = "", until: str = "", request_id: str = PAGE_ID) -> str:
        source = (JS / "snippets" / f"{name}.mjs").read_text().replace(PAGE_ID, request_id) + then
        program = subprocess.Popen(
            # The folder is where a program on stdin finds its modules.
            takeover.clients.wrap(["env", f"--chdir={JS}", node(), "--input-type=module"]),
            env=clean_env(takeover.clients.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with program:
            program.stdin.write(source)
            program.stdin.close()
            said = ""
            for line in program.stdout:
                said += line
                if until and until in line:
                    program.kill()
                    return said
            complaint = program.stderr.read()
        assert program.returncode == 0, complaint
        return said

    return run


@pytest.fixture
def submitted(run) -> str:
    """The id of a request that the page's submit snippet made."""
    return run("submit", "console.log(request_id);").strip()


def test_subscribe_prints_the_data_and_the_request_id(run):
    said = run("subscribe")

    assert "nsfw_content_detected: [ false ]" in said
    assert len(said.splitlines()[-1]) == len(PAGE_ID)


def test_realtime_prints_a_result(run):
    assert "https://v3.fal.media/files/" in run("realtime", until="nsfw_content_detected")


def test_config_takes_credentials(run):
    assert run("config") == ""


def test_submit_takes_a_webhook(submitted):
    assert len(submitted) == len(PAGE_ID)


def test_status_tells_of_the_request(run, submitted):
    said = run("status", "console.log(JSON.stringify(status));", request_id=submitted)

    assert json.loads(said)["status"] in {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}


def test_result_prints_the_data_of_a_completed_request(run, submitted):
    wait = (
        "while ((await fal.queue.status('fal-ai/lcm-sd15-i2i', "
        f"{{ requestId: '{submitted}' }})).status !== 'COMPLETED');"
    )
    run("config", f"fal.config({{}});{wait}")

    said = run("result", request_id=submitted)

    assert "images:" in said
    assert said.splitlines()[-1] == submitted


def test_a_request_id_that_nobody_made_is_not_found(run):
    said = run(
        "config", f"await fal.queue.status('x/y', {{ requestId: '{PAGE_ID}' }}).catch((e) => console.log(e.status));"
    )

    assert said == "404\n"


def test_upload_stores_a_text_file(run):
    then = "console.log(url, await (await fetch(url)).text());"

    said = run("upload", then)

    assert said.startswith("https://v3.fal.media/files/")
    assert said.endswith("Hello, World!\n")


def test_the_sample_input_with_its_picture_makes_an_image(takeover):
    [result] = takeover.clients.js("run.mjs", input=SAMPLE_INPUT)

    assert result["data"]["seed"] == 42
    assert (result["data"]["images"][0]["width"], result["data"]["images"][0]["height"]) == (512, 512)
