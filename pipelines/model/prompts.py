"""Prompts → keys and values of the UNet's cross attention, cached.

A text is cut to the model's length, padded and encoded as diffusers' `encode_prompt` does it, then projected to the
keys and values of every cross attention.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# One text of SD1.5 takes 3.8 MB in float16, nearly all of it keys and values: 32 are 123 MB, and enough for every
# prompt that is in use at one time.
CACHED_PROMPTS = 32

# Longer text is cut before it is tokenized, so that a prompt of megabytes costs no more than this. Far beyond the 75
# tokens that count: a token of CLIP's vocabulary has fewer than 100 characters.
MAX_CHARACTERS = 50_000


class Prompt(NamedTuple):
    """An encoded text: its `context` [length, …] on the device, length 77 for SD1.5.

    `tokens`: the text's number of tokens, begin and end included; `used`: the number that the model saw.
    """

    context: torch.Tensor
    tokens: int
    used: int


class PromptEncoder:
    """Tokenizer, text encoder and projection behind an LRU cache. Used from one thread.

    `config`: the text encoder's. `embed`: token ids and mask → embedding, `make_embed` or a captured form of it.
    `project`: embedding → keys and values, the UNet's. `upload`: host tensor → the device.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        embed: Callable[..., torch.Tensor],
        project: Callable[[torch.Tensor], torch.Tensor],
        upload: Callable[[torch.Tensor], torch.Tensor],
        *,
        capacity: int = CACHED_PROMPTS,
    ) -> None:
        self._tokenizer = tokenizer
        self._embed = embed
        self._project = project
        self._upload = upload
        self._capacity = capacity
        self._cache: OrderedDict[str, Prompt] = OrderedDict()
        # A tokenizer saved without its length claims 1e30; the position embeddings are what there is.
        self._length = min(tokenizer.model_max_length, config.max_position_embeddings)
        self._masked = getattr(config, "use_attention_mask", False)

    def encode(self, text: str) -> Prompt:
        """Return the encoded text, its tokens cut to the model's length (the end token stays)."""
        text = text[:MAX_CHARACTERS]
        prompt = self._cache.get(text)
        if prompt is None:
            prompt = self._cache[text] = self._encode(text)
            if len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return prompt

    @torch.inference_mode()
    def _encode(self, text: str) -> Prompt:
        ids, mask, tokens = self._tokenize(text)
        read = [ids, mask] if self._masked else [ids]
        embedding = self._embed(*map(self._upload, read))[0]
        return Prompt(context=self._project(embedding), tokens=tokens, used=min(tokens, self._length))

    def _tokenize(self, text: str) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return token ids and attention mask, int64 [1, length] each, and the text's number of tokens.

        Cut and padded here as the tokenizer would: for both it would have to read the text twice.
        """
        every = self._tokenizer(text, verbose=False).input_ids
        kept = every if len(every) <= self._length else [*every[: self._length - 1], every[-1]]
        missing = self._length - len(kept)
        ids = torch.tensor([kept + missing * [self._tokenizer.pad_token_id]])
        mask = torch.tensor([len(kept) * [1] + missing * [0]])
        return ids, mask, len(every)


def make_embed(text_encoder: Any) -> Callable[..., torch.Tensor]:
    """Return token ids [rows, length], and the mask if the encoder reads one → [rows, length, width]."""

    def embed(ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        # [0] is the last hidden state, after the encoder's final layer norm.
        embedding: torch.Tensor = text_encoder(ids, attention_mask=mask)[0]
        return embedding

    return embed
