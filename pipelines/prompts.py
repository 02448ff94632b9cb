"""Text to what the UNet reads of it. Cut to the model's length, padded and encoded as diffusers' `encode_prompt` does,
then taken through every cross attention's keys and values; cached."""

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
    """An encoded text, on the device: `embedding` [length, width], length 77 for SD1.5, and its `context` [length, …].

    `tokens`: how many the text has, with the two that begin and end it; `used`: how many of them the model saw.
    """

    embedding: torch.Tensor
    context: torch.Tensor
    tokens: int
    used: int


class PromptEncoder:
    """Tokenizer, text encoder and `project` (see `Unet.context`) behind an LRU cache. Used from one thread."""

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        project: Callable[[torch.Tensor], torch.Tensor],
        upload: Callable[[torch.Tensor], torch.Tensor],
        capacity: int = CACHED_PROMPTS,
    ) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._project = project
        self._upload = upload
        self._capacity = capacity
        self._cache: OrderedDict[str, Prompt] = OrderedDict()
        # A tokenizer saved without its length claims 1e30; the position embeddings are what there is.
        self._length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self.embed: Callable[..., torch.Tensor] = self._embed  # what a device computes; may be captured

    def encode(self, text: str) -> Prompt:
        """The text's embedding, the tokens beyond the model's length cut off (the end mark stays)."""
        text = text[:MAX_CHARACTERS]
        prompt = self._cache.get(text)
        if prompt is None:
            prompt = self._cache[text] = self._encode(text)
            if len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return prompt

    def clear(self) -> None:
        """Forget all texts."""
        self._cache.clear()

    @torch.inference_mode()
    def _encode(self, text: str) -> Prompt:
        inputs = self._tokenizer(
            text, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        read = [inputs.input_ids]
        if getattr(self._text_encoder.config, "use_attention_mask", False):
            read.append(inputs.attention_mask)
        embedding = self.embed(*map(self._upload, read))[0]
        tokens = len(self._tokenizer(text, verbose=False).input_ids)
        context = self._project(embedding)
        return Prompt(embedding=embedding, context=context, tokens=tokens, used=min(tokens, self._length))

    def _embed(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids [rows, length], and the mask if this encoder reads one → [rows, length, width]."""
        # [0] is the last hidden state, after the encoder's final layer norm.
        embedding: torch.Tensor = self._text_encoder(ids, attention_mask=mask)[0]
        return embedding
