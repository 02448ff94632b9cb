"""The algorithm, held against diffusers: same weights, same seed, float32 on the CPU, at most one 8-bit level apart.

Two references: one put together here from diffusers' own parts, for every strength and number of steps; and
`StableDiffusionImg2ImgPipeline` itself, which is given the timesteps (left alone it would run fewer).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.messages import GenerationParams
from pipelines.model.functions import make_functions
from pipelines.model.lcm import Lcm
from pipelines.model.noise_schedule import lcm_timesteps
from pipelines.weights import mapped
from tests.support import tiny_models

PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"


def picture(height=64, width=72, seed=0):
    """Blocks of colour on a gradient: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 200, (height // 8, width // 8, 3)), np.ones((8, 8, 1)))
    return np.ascontiguousarray(blocks + np.linspace(0, 55, width)[None, :, None], dtype=np.uint8)


def params(**fields):
    return GenerationParams(**({"prompt": PROMPT, "seed": 42} | fields))


def start(lcm, request, pixels):
    """The trajectories of a request."""
    conditioning = lcm.prepare(request)
    return lcm.encode([(request, conditioning, pixels, request.seed + i) for i in range(request.num_images)])


def generate(lcm, request, pixels):
    """The request alone: uint8 [images, H, W, 3]."""
    trajectories = start(lcm, request, pixels)
    while not trajectories[0].finished:
        lcm.step(trajectories)
    return lcm.decode(trajectories).numpy()


def levels_apart(a, b):
    """The largest difference in any channel of any pixel."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def pipeline_of(model):
    return StableDiffusionImg2ImgPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=LCMScheduler.from_config(tiny_models.SD15_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def reference(model, request, pixels):
    """What diffusers' own parts make of a request: uint8 [images, H, W, 3]."""
    return np.concatenate(
        [reference_image(model, request, pixels, request.seed + i) for i in range(request.num_images)]
    )


def reference_image(model, request, pixels, seed):
    generator = torch.Generator().manual_seed(seed)
    guided = request.guidance_scale > 1
    prompt, negative = pipeline_of(model).encode_prompt(
        request.prompt, model.device, 1, guided, request.negative_prompt if guided else None
    )
    processor = VaeImageProcessor()
    encoded = model.vae.encode(processor.preprocess(pixels[None].astype(np.float32) / 255))
    clean = encoded.latent_dist.sample(generator) if isinstance(model.vae, AutoencoderKL) else encoded.latents
    scale, shift = model.vae.config.scaling_factor, model.vae.config.shift_factor or 0.0
    latents = (clean - shift) * scale

    scheduler = LCMScheduler.from_config(model.scheduler_config)
    timesteps = torch.tensor([], dtype=torch.long)
    if request.strength > 0:
        scheduler.set_timesteps(request.num_inference_steps, strength=request.strength)
        timesteps = scheduler.timesteps
        noise = torch.randn(latents.shape, generator=generator)
        latents = scheduler.add_noise(latents, noise, timesteps[:1])
    for timestep in timesteps:
        if guided:
            both = torch.cat([latents] * 2)
            output = model.unet(both, timestep, encoder_hidden_states=torch.cat([negative, prompt])).sample
            without, with_prompt = output.chunk(2)
            output = without + request.guidance_scale * (with_prompt - without)
        else:
            output = model.unet(latents, timestep, encoder_hidden_states=prompt).sample
        latents = scheduler.step(output, timestep, latents, generator, return_dict=False)[0]
    image = model.vae.decode(latents / scale + shift).sample
    return to_levels(processor.postprocess(image, output_type="np"))


def to_levels(image):
    return (image * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny_models.make()


@pytest.fixture(scope="module")
def lcm(model):
    return Lcm(model)


# --- against diffusers' parts --------------------------------------------------------------------------------------

REQUESTS = {
    "the defaults": {},
    "one step": {"num_inference_steps": 1},
    "twelve steps at full strength": {"num_inference_steps": 12, "strength": 1.0},
    "a little strength": {"strength": 0.1},
    "the fewest timesteps there can be": {"num_inference_steps": 1, "strength": 0.02},
    "a strength just below a whole number of timesteps": {"strength": 0.58, "num_inference_steps": 7},
    "no strength": {"strength": 0.0},
    "no strength, with guidance": {"strength": 0.0, "guidance_scale": 5.0},
    "guidance": {"guidance_scale": 2.0},
    "strong guidance away from a prompt": {
        "guidance_scale": 16.0,
        "negative_prompt": "the ugly, blurry",
        "strength": 0.5,
    },
    "a guidance scale of 1": {"guidance_scale": 1.0, "negative_prompt": "never read"},
    "no guidance scale": {"guidance_scale": 0.0, "negative_prompt": "never read"},
    "several images": {"num_images": 3},
    "several images with guidance": {"num_images": 2, "guidance_scale": 1.5, "num_inference_steps": 3},
    "no prompt": {"prompt": ""},
    "a prompt that is cut": {"prompt": "the beach and the sun " * 60, "guidance_scale": 3.0},
    "a negative prompt that is cut": {"negative_prompt": "the rain of hawaii " * 60, "guidance_scale": 3.0},
    "seed zero": {"seed": 0},
    "the largest seed that torch takes": {"seed": 2**64 - 1},
}


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("size", [(64, 72), (104, 64)], ids=str)
def test_pictures_are_those_of_diffusers_parts(lcm, model, fields, size):
    request, pixels = params(**fields), picture(*size)

    actual = generate(lcm, request, pixels)

    assert levels_apart(actual, reference(model, request, pixels)) <= 1


@pytest.mark.parametrize("steps", [2, 5, 9])
@pytest.mark.parametrize("strength", [0.25, 0.66, 0.97])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_strength_steps_and_guidance_go_together_as_in_diffusers(lcm, model, steps, strength, guidance):
    request = params(num_inference_steps=steps, strength=strength, guidance_scale=guidance)

    actual = generate(lcm, request, picture())

    assert levels_apart(actual, reference(model, request, picture())) <= 1


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (136, 72), (88, 96)], ids=str)
def test_any_multiple_of_eight_is_a_size(lcm, model, size):
    request, pixels = params(guidance_scale=2.0), picture(*size)

    actual = generate(lcm, request, pixels)

    assert actual.shape == (1, *size, 3)
    assert levels_apart(actual, reference(model, request, pixels)) <= 1


@pytest.mark.parametrize("fields", [{}, {"strength": 0.0}, {"num_images": 2, "guidance_scale": 3.0}], ids=str)
def test_the_tiny_autoencoder_draws_no_posterior_sample(fields):
    model = tiny_models.make(vae=tiny_models.tiny_vae())
    request = params(**fields)

    actual = generate(Lcm(model), request, picture())

    assert levels_apart(actual, reference(model, request, picture())) <= 1


def test_latents_are_shifted_where_the_autoencoder_says_so():
    model = tiny_models.make(vae=tiny_models.vae(shift_factor=1.7))

    actual = generate(Lcm(model), params(strength=0.2), picture())

    assert levels_apart(actual, reference(model, params(strength=0.2), picture())) <= 1


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"clip_sample": True, "clip_sample_range": 2.0},
        {"timestep_scaling": 0.001},
        {"original_inference_steps": 100},
    ],
    ids=str,
)
def test_the_scheduler_config_is_read_as_lcm_scheduler_reads_it(config):
    model = tiny_models.make(scheduler_config=tiny_models.SD15_SCHEDULER | config)
    request = params(strength=1.0)

    actual = generate(Lcm(model), request, picture())

    assert levels_apart(actual, reference(model, request, picture())) <= 1


# --- against diffusers' pipeline -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_inference_steps": 8, "strength": 0.5},
        {"guidance_scale": 6.0, "negative_prompt": "the rain"},
        {"num_images": 4, "num_inference_steps": 2, "guidance_scale": 2.0},
        {"strength": 1.0, "num_inference_steps": 12},
        {"prompt": "the beach and the sun " * 60},
    ],
    ids=str,
)
def test_pictures_are_those_of_the_diffusers_pipeline_at_the_same_timesteps(lcm, model, fields):
    request, pixels = params(**fields), picture(72, 64)
    pipeline = pipeline_of(model)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=pixels[None].astype(np.float32) / 255,
        strength=1.0,  # the timesteps have it in them already
        timesteps=list(lcm_timesteps(request.num_inference_steps, request.strength)),
        guidance_scale=request.guidance_scale,
        num_images_per_prompt=request.num_images,
        generator=[torch.Generator().manual_seed(request.seed + i) for i in range(request.num_images)],
        output_type="np",
    ).images

    actual = generate(lcm, request, pixels)

    assert levels_apart(actual, to_levels(expected)) <= 1


# --- controls: what parity would not notice if the toy model were blind ---------------------------------------------

CHANGES = {
    "seed": {"seed": 43},
    "prompt": {"prompt": "a cat"},
    "steps": {"num_inference_steps": 5},
    "strength": {"strength": 0.7},
    "guidance": {"guidance_scale": 3.0},
    "negative prompt": {"guidance_scale": 3.0, "negative_prompt": "the ugly"},
}


@pytest.mark.parametrize("fields", CHANGES.values(), ids=CHANGES.keys())
def test_everything_that_a_request_says_shows_in_the_picture(lcm, fields):
    before = params(guidance_scale=3.0) if "negative_prompt" in fields else params()

    apart = levels_apart(generate(lcm, params(**fields), picture()), generate(lcm, before, picture()))

    assert apart > 20


@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_the_input_picture_shows_in_the_result(lcm, strength):
    one, other = (generate(lcm, params(strength=strength), picture(seed=seed)) for seed in (1, 2))

    assert levels_apart(one, other) > 20


def test_the_posterior_sample_shows_in_the_picture(lcm):
    one, other = (generate(lcm, params(strength=0.0, seed=seed), picture()) for seed in (1, 2))

    assert levels_apart(one, other) > 20


# --- seeds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "same"), [(-1, 2**64 - 1), (2**64, 0), (-(2**80) + 7, 7), (10**30, 10**30 % 2**64)])
def test_any_integer_is_a_seed_modulo_two_to_the_64(lcm, seed, same):
    actual = generate(lcm, params(seed=seed), picture())

    assert np.array_equal(actual, generate(lcm, params(seed=same), picture()))


def test_images_of_a_request_use_the_seeds_that_follow(lcm):
    together = generate(lcm, params(num_images=3, seed=2**64 - 1), picture())

    apart = [generate(lcm, params(seed=seed), picture())[0] for seed in (2**64 - 1, 0, 1)]
    assert levels_apart(together, np.stack(apart)) <= 1


# --- batches -------------------------------------------------------------------------------------------------------

MIXED = [
    params(seed=1),
    params(seed=2, num_inference_steps=1, guidance_scale=4.0),
    params(seed=3, num_inference_steps=7, strength=0.4, prompt="a cat"),
    params(seed=4, num_inference_steps=12, strength=1.0, guidance_scale=9.0, negative_prompt="the rain"),
    params(seed=5, num_inference_steps=6, strength=0.06),
    params(seed=6, num_images=2, guidance_scale=1.5),
    params(seed=7, strength=0.0),
]


def test_a_picture_does_not_depend_on_its_batch_mates(lcm):
    expected = np.concatenate([generate(lcm, request, picture(seed=request.seed)) for request in MIXED])

    trajectories = start_together(lcm, MIXED)
    while running := [trajectory for trajectory in trajectories if not trajectory.finished]:
        lcm.step(running)
    actual = lcm.decode(trajectories).numpy()

    assert levels_apart(actual, expected) <= 1


def start_together(lcm, requests):
    """All images of all requests in one call, each request with its own picture."""
    items = []
    for request in requests:
        pixels, conditioning = picture(seed=request.seed), lcm.prepare(request)
        items += [(request, conditioning, pixels, request.seed + i) for i in range(request.num_images)]
    return lcm.encode(items)


@pytest.mark.parametrize("order", range(4))
def test_requests_may_join_and_leave_at_any_step(lcm, order):
    rng = np.random.default_rng(order)
    requests = [MIXED[i] for i in rng.permutation(len(MIXED))]
    expected = [generate(lcm, request, picture(seed=request.seed)) for request in requests]

    waiting, running, actual = list(enumerate(requests)), [], {}
    while waiting or running:
        if waiting and (not running or rng.random() < 0.5):
            index, request = waiting.pop()
            running.append((index, start(lcm, request, picture(seed=request.seed))))
        going = [trajectory for _, trajectories in running for trajectory in trajectories if not trajectory.finished]
        rng.shuffle(going)
        if going:
            lcm.step(going)
        for index, trajectories in running:
            if trajectories[0].finished:
                actual[index] = lcm.decode(trajectories).numpy()
        running = [(index, trajectories) for index, trajectories in running if index not in actual]

    assert [levels_apart(actual[index], expected[index]) for index in range(len(requests))] <= [1] * len(requests)


def counting(function, rows):
    """The function, which notes the rows of each call."""

    def call(*inputs):
        rows.append(len(inputs[0]))
        return function(*inputs)

    return call


def test_one_unet_call_serves_the_whole_batch(model):
    rows, functions = [], make_functions(model)
    lcm = Lcm(model, replace(functions, unet=counting(functions.unet, rows)))

    trajectories = start_together(lcm, MIXED[:4])
    lcm.step(trajectories)

    assert [trajectory.rows for trajectory in trajectories] == [1, 2, 1, 2]
    assert rows == [6]
    assert [trajectory.step for trajectory in trajectories] == [1, 1, 1, 1]


def test_images_of_one_request_share_one_vae_encode(model):
    rows, functions = [], make_functions(model)
    lcm = Lcm(model, replace(functions, vae_encode=counting(functions.vae_encode, rows)))

    start(lcm, params(num_images=4), picture())

    assert rows == [1]


@pytest.mark.parametrize("fields", [{}, {"strength": 0.0}, {"num_inference_steps": 1, "seed": -3}])
@pytest.mark.parametrize("make_vae", [tiny_models.vae, tiny_models.tiny_vae])
def test_noise_that_another_thread_has_drawn_is_the_seed_s_own(make_vae, fields):
    lcm, request, pixels = Lcm(tiny_models.make(vae=make_vae())), params(**fields), picture()
    with ThreadPoolExecutor(1) as thread:
        drawn = thread.submit(lcm.draw, request, pixels, request.seed).result()

    [ours] = lcm.encode([(request, lcm.prepare(request), pixels, drawn)])

    [expected] = lcm.encode([(request, lcm.prepare(request), pixels, request.seed)])
    assert torch.equal(ours.latents, expected.latents)
    assert torch.equal(ours.plan, expected.plan)


def test_noise_is_drawn_in_the_order_of_the_reference():
    lcm, request, pixels = Lcm(tiny_models.make()), params(num_inference_steps=3), picture(64, 72)
    generator = torch.Generator().manual_seed(request.seed)
    expected = torch.cat([torch.randn(4, 8, 9, generator=generator)[None] for _ in range(4)])

    plan = lcm.draw(request, pixels, request.seed).plan

    assert torch.equal(plan[:4, : 4 * 8 * 9].view(4, 4, 8, 9), expected)
    assert not plan[4, : 4 * 8 * 9].any()  # after the last step there is none


def test_a_member_that_turns_to_nan_spoils_no_other(lcm):
    good, bad = start(lcm, params(), picture())[0], start(lcm, params(), picture())[0]
    bad.latents = torch.full_like(bad.latents, float("nan"))

    while not good.finished:
        lcm.step([bad, good])
    pixels = lcm.decode([good, bad]).numpy()

    assert lcm.finite([good, bad]).tolist() == [True, False]
    assert levels_apart(pixels[:1], generate(lcm, params(), picture())) <= 1


def out_of_memory(sample, shifts, context):
    raise MemoryError(len(sample))


def test_after_a_step_that_fails_every_member_is_where_it_was(lcm, model):
    trajectories = start_together(lcm, MIXED[:3])

    with pytest.raises(MemoryError):
        Lcm(model, replace(lcm.functions, unet=out_of_memory)).step(trajectories)

    assert [trajectory.step for trajectory in trajectories] == [0, 0, 0]
    while running := [trajectory for trajectory in trajectories if not trajectory.finished]:
        lcm.step(running)
    expected = np.concatenate([generate(lcm, request, picture(seed=request.seed)) for request in MIXED[:3]])
    assert levels_apart(lcm.decode(trajectories).numpy(), expected) <= 1


# --- what the engine sees ------------------------------------------------------------------------------------------


def test_a_trajectory_says_how_far_it_is(lcm):
    trajectory = start(lcm, params(num_inference_steps=3, guidance_scale=2.0), picture(64, 72))[0]

    seen = [(trajectory.step, trajectory.steps, trajectory.finished)]
    while not trajectory.finished:
        lcm.step([trajectory])
        seen.append((trajectory.step, trajectory.steps, trajectory.finished))

    assert seen == [(0, 3, False), (1, 3, False), (2, 3, False), (3, 3, True)]
    assert trajectory.rows == 2


@pytest.mark.parametrize("fields", [{"strength": 0.0}, {"strength": 0.019}])
def test_without_timesteps_a_trajectory_is_finished_at_once(lcm, fields):
    trajectory = start(lcm, params(**fields), picture())[0]

    assert (trajectory.steps, trajectory.finished) == (0, True)


def test_a_preview_shows_the_denoised_estimate_and_changes_nothing(lcm):
    trajectory = start(lcm, params(), picture())[0]

    untouched = lcm.decode([trajectory]).numpy()
    lcm.step([trajectory])
    preview = lcm.decode([trajectory]).numpy()
    while not trajectory.finished:
        lcm.step([trajectory])
    final = lcm.decode([trajectory]).numpy()

    assert levels_apart(untouched, generate(lcm, params(strength=0.0), picture())) == 0
    assert levels_apart(preview, final) > 1
    assert levels_apart(final, generate(lcm, params(), picture())) == 0


@pytest.mark.parametrize(
    ("fields", "summary"),
    [
        ({"prompt": "the " * 93}, "prompt: 95 tokens, 77 used"),
        (
            {"prompt": "the beach", "negative_prompt": "the " * 93, "guidance_scale": 2.0},
            "prompt: 4 tokens, 4 used; negative prompt: 95 tokens, 77 used",
        ),
    ],
)
def test_the_log_gets_counts_of_tokens_and_no_text(lcm, fields, summary):
    assert lcm.prepare(params(**fields)).summary == summary


def test_nothing_is_unsafe_without_a_checker(lcm):
    assert lcm.check(torch.zeros(3, 64, 64, 3, dtype=torch.uint8)).tolist() == [False] * 3


@pytest.mark.parametrize(("threshold", "flag"), [(-3.0, True), (3.0, False)])
def test_the_checker_of_the_model_is_asked(threshold, flag):
    lcm = Lcm(tiny_models.make(safety_checker=tiny_models.safety_checker(threshold=threshold)))

    assert lcm.check(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).tolist() == [flag, flag]


# --- devices -------------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


# Each makes the host wait for the device: reading a value, and shapes that depend on values.
WAITING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}


def test_a_step_never_waits_for_the_device(lcm):
    trajectories = start_together(lcm, MIXED[:4])

    with Operations() as operations:
        lcm.step(trajectories)
        lcm.decode(trajectories)

    assert "silu_" in operations.names  # it looked
    assert not operations.names & WAITING


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_give_nearly_the_same_picture(lcm, dtype):
    parts = {name: maker().to(dtype) for name, maker in PARTS.items()}
    half = Lcm(tiny_models.make(dtype=dtype, **parts))
    request = params(strength=0.3, guidance_scale=2.0)

    actual = generate(half, request, picture())

    apart = np.abs(actual.astype(int) - generate(lcm, request, picture()).astype(int))
    assert apart.mean() < 6


@pytest.mark.parametrize("make_vae", [tiny_models.vae, tiny_models.overflowing_vae, tiny_models.tiny_vae])
def test_a_picture_that_float16_does_not_hold_is_one_when_decoded_exactly(make_vae):
    request = params(num_inference_steps=1, strength=0.3)
    exact, half = Lcm(tiny_models.make(vae=make_vae())), tiny_models.float16(vae=make_vae())
    expected = generate(exact, request, picture())
    trajectories = start(half, request, picture())
    half.step(trajectories)

    half.decode(trajectories)
    finite = half.finite(trajectories).tolist()
    actual = half.decode_exactly(trajectories).numpy()

    assert finite == [make_vae is not tiny_models.overflowing_vae]
    assert half.finite(trajectories).tolist() == [True]
    assert np.abs(actual.astype(int) - expected.astype(int)).mean() < 6
    assert {weight.dtype for weight in half.functions.vae_decode.__self__.buffers()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formats_of_large_numbers_have_nothing_more_exact(dtype):
    parts = {name: maker().to(dtype) for name, maker in PARTS.items()}

    assert Lcm(tiny_models.make(dtype=dtype, **parts)).decode_exactly([]) is None


PARTS = {"unet": tiny_models.unet, "vae": tiny_models.vae, "text_encoder": tiny_models.text_encoder}


def test_the_model_that_it_is_made_from_can_be_let_go_meanwhile():
    model = tiny_models.make()
    expected = generate(Lcm(model), params(), picture())

    calls = []
    lcm = Lcm(model, make_functions(model, consumed=lambda: calls.append(1)))

    assert len(calls) > len(model.unet.down_blocks) + len(model.unet.up_blocks)
    assert {weight.device.type for part in (model.unet, model.vae) for weight in part.parameters()} == {"meta"}
    assert np.array_equal(generate(lcm, params(), picture()), expected)
    assert generate(lcm, params(num_inference_steps=7), picture()).shape == expected.shape  # timesteps not seen before


def test_what_runs_once_a_request_gives_its_files_pages_back(monkeypatch):
    model, seldom = tiny_models.make(safety_checker=tiny_models.safety_checker()), []
    monkeypatch.setattr(mapped, "release_after_use", seldom.append)

    make_functions(model)

    assert [type(network).__name__ for network in seldom] == [
        "CLIPTextModel",
        "KlVae",
        "StableDiffusionSafetyChecker",
    ]


def test_pages_of_a_mapped_file_are_given_back_once_the_unet_has_their_weights(monkeypatch):
    model, released = tiny_models.make(), []
    weights = {weight.data_ptr() for weight in model.unet.parameters()}
    monkeypatch.setattr(mapped, "release", lambda weight: released.append(weight.data_ptr()))

    make_functions(model, consumed=lambda: None)

    assert weights <= {*released}
