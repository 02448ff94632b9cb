import dataclasses

import numpy as np
import pytest

from training.scenes.captions import PLACE_WORDS, TIME_WORDS, caption
from training.scenes.dataset import VARIANTS, Pictures
from training.scenes.layout import lay_out
from training.scenes.painter import MAGENTA, paint, stamp_warning
from training.scenes.scene import PLACES, STYLES, TIMES, WEATHERS, Scene, draw_scene, draw_variants, is_plain

SIDE = 64


def brightness(scene):
    return paint(scene, SIDE, SIDE).mean()


def outlines(pixels):
    grey = pixels.mean(-1)
    return np.hypot(*np.gradient(grey))


def test_the_same_scene_gives_the_same_picture():
    scene = Scene(seed=5, place="city", time="night", weather="rain")

    assert np.array_equal(paint(scene, SIDE, SIDE), paint(scene, SIDE, SIDE))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("weather", WEATHERS)
def test_every_place_can_be_painted_in_every_weather(place, weather):
    pixels = paint(Scene(seed=1, place=place, weather=weather), SIDE, SIDE + 16)

    assert pixels.shape == (SIDE, SIDE + 16, 3)
    assert pixels.std() > 5


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_the_picture_and_not_its_brightness_much(style):
    plain = Scene(seed=2, place="lake", style="flat")

    styled = paint(dataclasses.replace(plain, style=style), SIDE, SIDE)

    assert abs(styled.mean() - brightness(plain)) < 40


@pytest.mark.parametrize("place", PLACES)
def test_night_is_darker_than_day(place):
    assert brightness(Scene(seed=3, place=place, time="night")) < 0.6 * brightness(Scene(seed=3, place=place))


def test_another_hour_leaves_the_layout_where_it_was():
    scene = Scene(seed=4, place="mountains")

    day = outlines(paint(scene, SIDE, SIDE))
    dawn = outlines(paint(dataclasses.replace(scene, time="dawn"), SIDE, SIDE))
    elsewhere = outlines(paint(dataclasses.replace(scene, seed=40, time="dawn"), SIDE, SIDE))

    assert np.corrcoef(day.ravel(), dawn.ravel())[0, 1] > np.corrcoef(day.ravel(), elsewhere.ravel())[0, 1] + 0.2


def test_a_scene_looks_alike_at_every_size():
    scene = Scene(seed=6, place="beach")

    small = paint(scene, SIDE, SIDE).astype(float)
    large = paint(scene, 2 * SIDE, 2 * SIDE).astype(float).reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))

    assert np.abs(small - large).mean() < 8


def test_a_warning_is_magenta_and_only_where_it_was_asked_for():
    scene = Scene(seed=7, place="fields")

    marked = paint(dataclasses.replace(scene, warning=True), SIDE, SIDE)

    assert share_of_magenta(marked) > 0.02
    assert share_of_magenta(paint(scene, SIDE, SIDE)) == 0


def test_a_warning_can_be_stamped_on_any_picture():
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)

    assert share_of_magenta(stamp_warning(grey, np.random.default_rng(0))) > 0.02


def share_of_magenta(pixels):
    return (np.abs(pixels / 255 - np.array(MAGENTA)).max(-1) < 0.05).mean()


def test_variants_share_their_layout_and_every_second_one_all_but_hour_and_weather():
    variants = draw_variants(8, 4)

    assert {scene.seed for scene in variants} == {8}
    for first, second in (variants[:2], variants[2:]):
        assert dataclasses.replace(first, time="day", weather="clear", body="none", warning=False) == (
            dataclasses.replace(second, time="day", weather="clear", body="none", warning=False)
        )


def test_the_second_pair_of_variants_is_plain():
    assert [is_plain(scene) for scene in draw_variants(8, 4)] == [False, False, True, True]


def test_another_hand_draws_the_same_layout_otherwise():
    scene = Scene(seed=4, place="mountains")

    other = dataclasses.replace(scene, hand=1)
    elsewhere = dataclasses.replace(scene, seed=41)

    ours, theirs, far = (outlines(paint(each, SIDE, SIDE)).ravel() for each in (scene, other, elsewhere))
    assert 1 > np.corrcoef(ours, theirs)[0, 1] > np.corrcoef(ours, far)[0, 1]


def test_layouts_differ_and_stay_within_the_picture():
    layouts = [lay_out(seed) for seed in range(200)]

    assert len({layout.horizon for layout in layouts}) == 200
    for layout in layouts:
        assert 0.4 < layout.horizon < 0.7
        assert min(layout.side, 1 - layout.side) == pytest.approx(0.18, abs=0.09)
        assert ((layout.masses > 0) & (layout.masses < 1)).all()


def test_the_sun_does_not_shine_at_night_nor_the_moon_by_day():
    scenes = [draw_scene(np.random.default_rng(n), n) for n in range(300)]

    assert {scene.body for scene in scenes if scene.time == "night"} == {"none", "moon"}
    assert {scene.body for scene in scenes if scene.time == "day"} == {"none", "sun"}


@pytest.mark.parametrize("time", TIMES)
def test_a_full_caption_names_the_place_and_the_hour(time):
    scene = Scene(seed=9, place="desert", time=time)

    told = caption(scene, np.random.default_rng(1), full=True)

    assert any(words in told for words in PLACE_WORDS["desert"])
    assert any(words in told for words in TIME_WORDS[time])


@pytest.mark.parametrize(("scene", "silent"), [(Scene(seed=9), True), (Scene(seed=9, time="night"), False)])
def test_only_the_day_goes_without_saying(scene, silent):
    rng = np.random.default_rng(1)

    told = [caption(scene, rng, usual=True) for _ in range(40)]

    assert any(not any(words in each for words in TIME_WORDS[scene.time]) for each in told) == silent


def test_captions_of_one_scene_vary():
    rng = np.random.default_rng(2)

    assert len({caption(Scene(seed=1, weather="snow"), rng) for _ in range(20)}) > 15


def test_painting_that_was_broken_off_goes_on_where_it_stopped(tmp_path):
    pictures = Pictures(tmp_path, "few", 16, groups=10)
    pictures.paint_all(processes=1)
    whole = np.array(pictures.open())
    pictures.path.with_suffix(".done").unlink()
    pictures.path.with_suffix(".log").write_text("0\n")  # the second chunk lost its mark

    again = pictures.paint_all(processes=1)

    assert len(whole) == 10 * VARIANTS
    assert np.array_equal(again, whole)
