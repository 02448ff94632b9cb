"""The safety checker on tensors, held against diffusers' own checker and transformers' image processor."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil

from pipelines.model.safety import CLIP_STD, SafetyChecker
from tests.support import tiny_models

SIZES = [(64, 64), (32, 32), (512, 512), (64, 1024), (1024, 72), (200, 136), (200, 100), (208, 100), (24, 56), (56, 24)]
UNREACHABLE = 3.0  # a threshold above any cosine


def pictures(count, height, width, seed=0):
    """Smooth colour with edges and noise on it: uint8 [count, height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    fine = torch.randn(count, 3, height, width, generator=generator) * 12
    images = F.interpolate(coarse, size=(height, width), mode="nearest") + fine
    return images.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def diffusers_flags(checker, pixels):
    """What diffusers' checker says of the same inputs."""
    inputs = SafetyChecker(checker).preprocess(pixels)
    return checker(clip_input=inputs, images=np.zeros((len(pixels), 8, 8, 3)))[1]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_preprocessing_is_that_of_the_clip_image_processor_within_one_level(height, width):
    pixels = pictures(2, height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(list(pixels.numpy()), input_data_format="channels_last", return_tensors="pt").pixel_values

    actual = SafetyChecker(tiny_models.safety_checker()).preprocess(pixels)

    assert actual.shape == expected.shape
    levels = (actual - expected).abs() * torch.tensor(CLIP_STD).view(3, 1, 1) * 255
    assert levels.max() <= 1.001
    assert levels.mean() < 0.01


@pytest.mark.parametrize(("threshold", "flag"), [(-UNREACHABLE, True), (UNREACHABLE, False)])
def test_a_checker_flags_everything_or_nothing_if_it_is_made_to(threshold, flag):
    checker = SafetyChecker(tiny_models.safety_checker(threshold=threshold))

    assert checker(pictures(3, 64, 48)).tolist() == [flag] * 3


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5])
def test_flags_are_those_of_diffusers(threshold):
    checker = tiny_models.safety_checker(threshold=threshold)
    pixels = torch.cat([pictures(8, 40, 32, seed) for seed in range(3)])

    flags = SafetyChecker(checker)(pixels).tolist()

    assert flags == diffusers_flags(checker, pixels)


def test_pictures_of_one_batch_are_judged_each_by_itself():
    checker = SafetyChecker(tiny_models.safety_checker(threshold=0.54))
    pixels = pictures(24, 40, 32)

    flags = checker(pixels).tolist()

    assert flags == [checker(picture[None]).item() for picture in pixels]
    assert len(set(flags)) == 2


@pytest.mark.parametrize("special", [UNREACHABLE, -UNREACHABLE], ids=["no special care", "special care"])
@pytest.mark.parametrize("margin", [-0.011, -0.0106, -0.0104, -0.0096, -0.0094, 0.0, 0.0004, 0.0006, 0.0014, 0.1])
def test_scores_are_rounded_and_adjusted_as_diffusers_does(margin, special):
    pixels = pictures(1, 32, 32)
    checker = tiny_models.safety_checker(threshold=UNREACHABLE)
    checker.special_care_embeds_weights.data.fill_(special)
    checker.concept_embeds_weights.data[7] = cosine_of_concept(checker, pixels, 7) - margin

    flags = SafetyChecker(checker)(pixels).tolist()

    adjustment = 0.01 if special < 0 else 0.0
    assert flags == diffusers_flags(checker, pixels)
    assert flags == [margin + adjustment > 0.0005]


@pytest.mark.parametrize("margin", [-0.001, 0.0004, 0.0006])
def test_special_care_begins_above_half_a_thousandth(margin):
    pixels = pictures(1, 32, 32)
    checker = tiny_models.safety_checker(threshold=UNREACHABLE)
    checker.special_care_embeds_weights.data[1] = cosine_of_special(checker, pixels, 1) - margin
    checker.concept_embeds_weights.data[7] = cosine_of_concept(checker, pixels, 7) + 0.005

    flags = SafetyChecker(checker)(pixels).tolist()

    assert flags == diffusers_flags(checker, pixels)
    assert flags == [margin > 0.0005]


@pytest.mark.parametrize("what", ["concept_embeds_weights", "special_care_embeds_weights", "visual_projection.weight"])
def test_a_checker_that_can_not_tell_does_not_say_that_all_is_well(what):
    checker, pixels = tiny_models.safety_checker(threshold=UNREACHABLE), pictures(1, 32, 32)
    checker.concept_embeds_weights.data[7] = cosine_of_concept(checker, pixels, 7) + 0.005  # unsafe with special care
    checker.get_parameter(what).data[...] = torch.nan

    flags = SafetyChecker(checker)(pixels).tolist()

    assert flags == [True]


def cosine_of_concept(checker, pixels, number):
    return cosine(checker, pixels, checker.concept_embeds[number])


def cosine_of_special(checker, pixels, number):
    return cosine(checker, pixels, checker.special_care_embeds[number])


def cosine(checker, pixels, direction):
    inputs = SafetyChecker(checker).preprocess(pixels)
    embedding = checker.visual_projection(checker.vision_model(inputs)[1])
    return F.cosine_similarity(embedding, direction[None])[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checker_in_sixteen_bits_decides_alike_away_from_the_thresholds(dtype):
    pixels = pictures(4, 40, 32)

    flags = [
        SafetyChecker(tiny_models.safety_checker(threshold=t).to(dtype))(pixels).tolist()
        for t in (-UNREACHABLE, UNREACHABLE)
    ]

    assert flags == [[True] * 4, [False] * 4]
