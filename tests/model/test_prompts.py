"""Prompts to embeddings, held against diffusers' `encode_prompt`."""

import logging

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionImg2ImgPipeline

from pipelines.model.prompts import MAX_CHARACTERS, PromptEncoder, make_embed
from tests.support import tiny_models

TEXTS = {
    "words": "the beach of Hawaii, sun",
    "empty": "",
    "white space": " \t\n  the   beach\r\n ",
    "other scripts": "海辺 пляж 🏖️ e\u0301",
    "marks of the tokenizer": "the <|endoftext|> beach <|startoftext|>",
    "just fits": "the " * 75,
    "one too many": "the " * 76,
    "far too many": "the beach " * 300,
}
texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())


def same(tensor):
    return tensor


def encoder_for(text_encoder, project=same, tokenizer=None, **options):
    """An encoder whose `context` is the embedding itself, unless told otherwise."""
    tokenizer, embed = tokenizer or tiny_models.tokenizer(), make_embed(text_encoder)
    return PromptEncoder(tokenizer, text_encoder.config, embed, project, same, **options)


def diffusers_embedding(text_encoder, text):
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=tiny_models.vae(),
        text_encoder=text_encoder,
        tokenizer=tiny_models.tokenizer(),
        unet=tiny_models.unet(),
        scheduler=LCMScheduler.from_config(tiny_models.SD15_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.encode_prompt(text, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0][0]


@texts
@pytest.mark.parametrize("config", [{}, {"use_attention_mask": True}], ids=str)
def test_embeddings_are_those_of_diffusers(text, config):
    text_encoder = tiny_models.text_encoder(**config)

    actual = encoder_for(text_encoder).encode(text).context

    torch.testing.assert_close(actual, diffusers_embedding(text_encoder, text), rtol=0, atol=0)


@texts
@pytest.mark.parametrize("length", [77, 5])
def test_tokens_are_those_of_the_tokenizer_when_it_cuts_and_pads(text, length):
    tokenizer = tiny_models.tokenizer()
    tokenizer.model_max_length = length

    ids, mask, _ = encoder_for(tiny_models.text_encoder(), tokenizer=tokenizer)._tokenize(text)

    expected = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    assert torch.equal(ids, expected.input_ids)
    assert torch.equal(mask, expected.attention_mask)


def test_a_text_is_tokenized_once():
    tokenizer, calls = tiny_models.tokenizer(), []

    def counted(*args, **kwargs):
        calls.append(args)
        return tokenizer(*args, **kwargs)

    counted.model_max_length, counted.pad_token_id = tokenizer.model_max_length, tokenizer.pad_token_id

    encoder_for(tiny_models.text_encoder(), tokenizer=counted).encode("the beach " * 300)

    assert len(calls) == 1


def test_what_the_unet_reads_is_made_of_the_embedding():
    embedding = encoder_for(tiny_models.text_encoder()).encode("the beach").context

    assert torch.equal(encoder_for(tiny_models.text_encoder(), torch.neg).encode("the beach").context, -embedding)


def test_the_attention_mask_is_used_where_the_encoder_asks_for_it():
    with_mask = encoder_for(tiny_models.text_encoder(use_attention_mask=True)).encode("the beach").context
    without = encoder_for(tiny_models.text_encoder()).encode("the beach").context

    assert not torch.allclose(with_mask, without)


@pytest.mark.parametrize(
    ("text", "tokens", "used"),
    [("", 2, 2), ("the beach", 4, 4), ("the " * 75, 77, 77), ("the " * 76, 78, 77), ("the " * 93, 95, 77)],
)
def test_tokens_are_counted_with_the_marks_at_both_ends(text, tokens, used):
    prompt = encoder_for(tiny_models.text_encoder()).encode(text)

    assert (prompt.tokens, prompt.used) == (tokens, used)


def test_a_tokenizer_that_claims_no_limit_is_held_to_the_position_embeddings():
    tokenizer = tiny_models.tokenizer()
    tokenizer.model_max_length = int(1e30)

    prompt = encoder_for(tiny_models.text_encoder(), tokenizer=tokenizer).encode("the " * 100)

    assert prompt.context.shape == (77, tiny_models.WIDTH)


def test_a_prompt_of_megabytes_is_cut_before_it_is_read():
    encoder = encoder_for(tiny_models.text_encoder())

    prompt = encoder.encode("the " * 5_000_000)

    assert prompt.tokens == MAX_CHARACTERS // 4 + 2
    assert torch.equal(prompt.context, encoder.encode("the " * 80).context)


def test_a_long_prompt_is_cut_without_a_word_in_the_log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)

    encoder_for(tiny_models.text_encoder()).encode("the beach " * 100)

    assert caplog.text == ""


def test_the_most_recent_prompts_are_kept_and_the_others_encoded_again():
    text_encoder = tiny_models.text_encoder()
    runs = []
    text_encoder.register_forward_hook(lambda *_: runs.append(1))
    encoder = encoder_for(text_encoder, capacity=2)

    counts = []
    for text in ["a", "b", "a", "b", "c", "b", "a"]:  # c drives out a, then a drives out c
        encoder.encode(text)
        counts.append(len(runs))

    assert counts == [1, 2, 2, 2, 3, 3, 4]
