"""The shipped weights through the whole server: what users turn does what users expect."""

import base64
import io
import json
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from training.scenes.painter import paint, stamp_warning
from training.scenes.scene import Scene

SIDE = 256
BEACH = paint(Scene(seed=11, place="beach", body="sun"), SIDE, SIDE)


def generate(server, pixels=BEACH, **asked):
    """The answer to one request: pictures as float arrays [H, W, 3], and the body."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    body = {"prompt": "photo of a beach", "seed": 1, "sync_mode": True, "image_url": image} | asked
    request = urllib.request.Request(
        f"{server.url}/run/fal-ai/lcm-sd15-i2i",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answered = json.load(answer)
    return [opened(each["url"]) for each in answered["images"]], answered


def opened(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))), np.float32)


def picture(server, pixels=BEACH, **asked):
    return generate(server, pixels, **asked)[0][0]


def distance(a, b):
    return np.abs(a.astype(np.float32) - b.astype(np.float32)).mean()


def detail(pixels):
    """How much goes on between neighbours."""
    return np.hypot(*np.gradient(pixels.mean(-1))).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("weaker", "stronger"), [(0.1, 0.5), (0.5, 0.9)])
def test_more_strength_leads_further_from_the_input(demo, weaker, stronger):
    near, far = (picture(demo, prompt="a city at noon", strength=strength) for strength in (weaker, stronger))

    assert distance(near, BEACH) < 0.9 * distance(far, BEACH)


def test_a_seed_gives_its_picture_again_and_another_seed_another(demo):
    first, again, other = (picture(demo, seed=seed, strength=1.0) for seed in (5, 5, 6))

    assert np.array_equal(first, again)
    assert distance(first, other) > 5


def test_the_images_of_one_request_have_seeds_that_follow_each_other(demo):
    pictures, answered = generate(demo, seed=5, num_images=2)

    assert answered["seed"] == 5
    assert distance(pictures[1], picture(demo, seed=6)) < 2  # a batch may round otherwise
    assert distance(pictures[0], pictures[1]) > 3


@pytest.mark.parametrize("strength", [0.8, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_prompt_turns_day_into_night(demo, strength, seed):
    day = picture(demo, prompt="photo of a beach during the day", strength=strength, seed=seed)
    night = picture(demo, prompt="photo of a beach at night", strength=strength, seed=seed)

    assert night.mean() < 0.65 * day.mean()


def test_the_prompt_turns_the_evening_sky_red(demo):
    noon, evening = (picture(demo, prompt=f"a beach {hour}", strength=1.0)[:100] for hour in ("at noon", "at sunset"))

    assert (evening[..., 0] - evening[..., 2]).mean() > (noon[..., 0] - noon[..., 2]).mean() + 60


def test_the_prompt_turns_the_ground_green_or_sandy(demo):
    forest, desert = (
        picture(demo, prompt=f"{place} at noon", strength=1.0)[160:] for place in ("a forest", "sand dunes")
    )

    assert (forest[..., 1] - forest[..., 0]).mean() > (desert[..., 1] - desert[..., 0]).mean() + 30


@pytest.mark.parametrize("place", ["a city", "mountains", "a forest"])
def test_more_steps_draw_more(demo, place):
    one, four = (picture(demo, prompt=f"{place} at noon", strength=1.0, num_inference_steps=n) for n in (1, 4))

    assert detail(four) > 1.05 * detail(one)


def test_the_input_s_composition_stays_at_half_strength(demo):
    asked = {"prompt": "a beach at dawn", "strength": 0.5}
    own = picture(demo, **asked)
    other = picture(demo, paint(Scene(seed=14, place="beach"), SIDE, SIDE), **asked)

    assert distance(own, picture(demo, seed=2, **asked)) < 0.8 * distance(own, other)


def test_guidance_leads_away_from_the_negative_prompt(demo):
    asked = {"prompt": "photo of a beach", "strength": 1.0, "guidance_scale": 3}

    not_dark = picture(demo, negative_prompt="at night, dark night", **asked)
    not_bright = picture(demo, negative_prompt="at noon, in daylight", **asked)

    assert not_dark.mean() > not_bright.mean() + 20


def test_without_guidance_the_negative_prompt_says_nothing(demo):
    plain, with_negative = (picture(demo, negative_prompt=text, guidance_scale=1) for text in ("", "night"))

    assert np.array_equal(plain, with_negative)


def test_the_checker_blackens_what_it_was_taught_to_flag_unless_told_not_to(demo):
    warning = stamp_warning(BEACH, np.random.default_rng(3))

    checked, answered = generate(demo, warning, strength=0.1)
    unchecked, unanswered = generate(demo, warning, strength=0.1, enable_safety_checks=False)

    assert answered["nsfw_content_detected"] == [True]
    assert checked[0].max() < 5
    assert unanswered["nsfw_content_detected"] == [False]
    assert unchecked[0].max() > 100


def test_the_checker_lets_ordinary_pictures_through(demo):
    _, answered = generate(demo, num_images=4)

    assert answered["nsfw_content_detected"] == [False] * 4


def test_the_server_says_that_this_is_the_demo_model(demo):
    assert "DEMO MODEL" in json.dumps(demo.get("/health"))


def test_the_server_says_which_torch_computes_in_which_format(demo):
    [engine] = demo.get("/health")["engines"]

    log = (demo.data_dir / "log").read_text()
    assert (engine["model"], engine["dtype"], engine["torch"]) == ("demo", "float32", torch.__version__)
    assert f"demo is ready on {engine['device']}: float32, torch {torch.__version__}\n" in log
