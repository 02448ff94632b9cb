"""Statements of the protocol on a real socket: the input of a run, its picture, its output.

The statements are those of `conformance.txt`. With `--fleet` each call is answered by the next of three boxes.
"""

import base64
import functools
import http.server
import io
import threading

import pytest
from PIL import Image

from pipelines.engine.instant import JPEG
from tests.support import tiny_models
from tests.support.server_process import APP, CALL, ask, serving

RUN = f"/run/{APP}"
ALWAYS = -3.0  # a threshold below any cosine


@pytest.fixture(scope="module")
def echo():
    """A server that sends back the picture that it got, and may fetch it from this machine."""
    with serving("--model", "instant+jpeg:5", "--tls-port", "0", "--allow-net", "127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """A server with the built-in model and a checker that finds every picture unsafe."""
    folder = tmp_path_factory.mktemp("checker")
    tiny_models.safety_checker(threshold=ALWAYS).save_pretrained(folder)
    with serving("--model", "demo", "--safety-checker", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A web server on this machine: its URL, and the folder of its files."""
    folder = tmp_path_factory.mktemp("site")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def run(server, **changes):
    """The answer to a run, with `changes` of its input."""
    return ask(server, "POST", RUN, CALL | changes)


def shown(answer):
    """The first picture in an output that has it inline."""
    assert answer.status == 200, answer.body
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]["url"].partition(",")[2])))


def picture(width, height, kind="jpeg", **options):
    """The file of a picture that is white in its left half and black in its right."""
    image = Image.new("RGB", (width, height), "black")
    image.paste("white", (0, 0, width // 2, height))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def data_uri(data, kind="jpeg"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# --- the picture


def in_itself(_echo, _site, kind):
    return data_uri(picture(96, 64, kind), kind)


def on_a_site(_echo, site, kind):
    url, folder = site
    (folder / f"picture.{kind}").write_bytes(picture(96, 64, kind))
    return f"{url}/picture.{kind}"


def uploaded(echo, _site, kind):
    wanted = {"content_type": f"image/{kind}"}
    urls = ask(echo, "POST", "https://rest.fal.ai/storage/upload/initiate", wanted).json()
    assert ask(echo, "PUT", urls["upload_url"], picture(96, 64, kind)).status == 200
    assert urls["file_url"].startswith("https://")
    return urls["file_url"]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("way", [in_itself, on_a_site, uploaded])
def test_a_picture_of_each_kind_comes_as_data_uri_or_url(echo, site, way, kind):
    back = shown(run(echo, image_url=way(echo, site, kind)))

    left, right = back.getpixel((8, 32)), back.getpixel((88, 32))
    assert (back.size, min(left) > 200, max(right) < 50) == ((96, 64), True, True)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (data_uri(b"no picture"), "unsupported_image_format"),
        (data_uri(picture(96, 64)[:300]), "image_load_error"),
        ("data:image/png;base64,*", "image_load_error"),
        ("SITE/missing.png", "file_download_error"),
        ("https://10.0.0.1/inside.png", "file_download_error"),
    ],
    ids=["no picture", "half of one", "no base64", "not there", "inside"],
)
def test_a_picture_that_can_not_be_had_is_422_in_its_place(echo, site, url, kind):
    answer = run(echo, image_url=url.replace("SITE", site[0]))

    [fault] = answer.json()["detail"]
    assert (answer.status, fault["loc"], fault["type"]) == (422, ["body", "image_url"], kind)


@pytest.mark.parametrize(("sides", "nearest"), [((511, 512), (512, 512)), ((100, 75), (104, 72))])
def test_sides_need_not_be_multiples_of_8(echo, sides, nearest):
    answer = run(echo, image_url=data_uri(picture(*sides)))

    [image] = answer.json()["images"]
    assert shown(answer).size == (image["width"], image["height"]) == nearest


def test_a_picture_that_lies_on_its_side_is_turned_first(echo):
    exif = Image.Exif()
    exif[0x0112] = 6  # its left is the top

    back = shown(run(echo, image_url=data_uri(picture(96, 64, exif=exif))))

    top, bottom = back.getpixel((32, 8)), back.getpixel((32, 88))
    assert (back.size, min(top) > 200, max(bottom) < 50) == ((64, 96), True, True)


# --- the other fields

# Field, least, most, and what lies between two values.
BOUNDS = [
    ("strength", 0, 1, 0.01),
    ("guidance_scale", 0, 16, 0.01),
    ("num_inference_steps", 1, 12, 1),
    ("num_images", 1, 8, 1),
]


@pytest.mark.parametrize(("field", "value"), [(field, bound) for field, *both, _ in BOUNDS for bound in both])
def test_each_bound_is_legal(instant, field, value):
    answer = run(instant, **{field: value})

    given = {"num_inference_steps": 4, "num_images": 1, field: value}
    output = answer.json()
    assert answer.status == 200
    assert (output["num_inference_steps"], len(output["images"])) == (given["num_inference_steps"], given["num_images"])


@pytest.mark.parametrize(
    ("field", "value", "kind", "bound"),
    [(field, least - step, "greater_than_equal", {"ge": least}) for field, least, _, step in BOUNDS]
    + [(field, most + step, "less_than_equal", {"le": most}) for field, _, most, step in BOUNDS],
)
def test_a_value_beyond_its_bound_is_422_with_the_bound(instant, field, value, kind, bound):
    answer = run(instant, **{field: value})

    [fault] = answer.json()["detail"]
    assert (answer.status, fault["loc"], fault["type"], fault["ctx"]) == (422, ["body", field], kind, bound)


@pytest.mark.parametrize("field", ["prompt", "image_url"])
def test_a_required_field_is_missed_in_its_place(instant, field):
    answer = ask(instant, "POST", RUN, {name: value for name, value in CALL.items() if name != field})

    [fault] = answer.json()["detail"]
    assert (answer.status, fault["loc"], fault["type"]) == (422, ["body", field], "missing")


def test_unknown_fields_are_ignored(instant):
    answer = run(instant, image_size="square", nothing={"deep": [1]})

    assert (answer.status, answer.json()["seed"]) == (200, CALL["seed"])


# --- the output


def test_an_output_has_as_many_images_as_were_asked_for_each_with_its_size(instant):
    images = run(instant, num_images=2, sync_mode=False).json()["images"]

    urls = {image.pop("url") for image in images}
    assert images == [{"width": 64, "height": 64, "content_type": "image/jpeg"}] * 2
    assert len(urls) == 2


def test_where_nothing_is_said_of_sync_mode_files_are_linked(instant):
    said = {name: value for name, value in CALL.items() if name != "sync_mode"}

    assert ask(instant, "POST", RUN, said).json()["images"][0]["url"].startswith(f"{instant.url}/cdn/files/")


SMALL = {"image_url": data_uri(JPEG), "enable_safety_checks": False}


def test_a_seed_gives_its_picture_again_and_a_missing_one_is_drawn_and_told(painter):
    first, again, other = (run(painter, **SMALL | {"seed": seed}).json() for seed in (7, 7, 8))
    drawn, anew = (run(painter, **SMALL | {"seed": None}).json() for _ in range(2))
    repeated = run(painter, **SMALL | {"seed": drawn["seed"]}).json()

    assert (first["seed"], other["seed"]) == (7, 8)
    assert first["images"] == again["images"] != other["images"]
    assert 0 <= drawn["seed"] < 2**53
    assert drawn["seed"] != anew["seed"]
    assert repeated["images"] == drawn["images"]


@pytest.mark.parametrize(
    ("field", "default", "other"),
    [("strength", 0.8, 0.4), ("guidance_scale", 1, 4), ("num_inference_steps", 4, 6), ("num_images", 1, 2)],
)
def test_what_is_left_out_is_fals_default(painter, field, default, other):
    said = ({}, {field: default}, {field: other})
    left_out, written, changed = (run(painter, **SMALL | each).json()["images"] for each in said)

    assert left_out == written != changed


@pytest.mark.parametrize("checks", [{}, {"enable_safety_checks": None}, {"enable_safety_checks": True}])
def test_an_unsafe_picture_is_black_and_flagged_unless_nobody_is_to_look(painter, checks):
    answer = run(painter, **SMALL | checks)

    checked = bool(checks)
    assert (shown(answer).getextrema() == ((0, 0),) * 3) == checked
    assert answer.json()["nsfw_content_detected"] == [checked]
