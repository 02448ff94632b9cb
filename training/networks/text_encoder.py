"""The text encoder: a small CLIP with its own vocabulary, trained to read captions before it is used with pictures."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.config import WORK
from training.scenes.captions import caption
from training.scenes.scene import BODIES, PALETTES, PLACES, STYLES, TIMES, WEATHERS, Scene, draw_scene
from training.trainer import Course, rank, train

WIDTH, LENGTH = 128, 77
TOKENIZER = WORK / "tokenizer"
TAUGHT = WORK / "text-final.pt"
COURSE = Course("text", steps=350, rate=1e-3, average=0.99)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_ATTRIBUTES = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "body": BODIES,
    "style": STYLES,
    "palette": PALETTES,
}
_BATCH = 48


def make_tokenizer(folder: Path = TOKENIZER, entries: int = 880) -> None:
    """Write a byte-level BPE tokenizer as CLIP's, its merges learnt from 20 000 captions; any text can be encoded."""
    rng = np.random.default_rng(1)
    texts = [caption(draw_scene(rng, i), rng) for i in range(20_000)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=entries - 256, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n", encoding="utf-8"
    )
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class Words:
    """Tokenizer of captions; ids are the same as the server's."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)

    def ids(self, texts: list[str]) -> Tensor:
        """Return token ids, int64 [N, 77]."""
        return self.tokenizer(
            texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids


def build(vocabulary: int) -> CLIPTextModel:
    """Return the untrained encoder."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


class Reader(nn.Module):
    """The encoder with one linear classifier per attribute on its mean and its last state."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(2 * WIDTH, len(values)) for name, values in _ATTRIBUTES.items()})

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        states = self.encoder(ids)[0]
        seen = torch.cat([states.mean(1), states[:, -1]], -1)
        return {name: head(seen) for name, head in self.heads.items()}


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Return the index of each scene's value, [N], by attribute."""
    return {
        name: torch.tensor([values.index(getattr(s, name)) for s in scenes]) for name, values in _ATTRIBUTES.items()
    }


def work() -> None:
    words = Words()
    reader = Reader(build(len(words.tokenizer)))

    def loss(rng: np.random.Generator) -> dict[str, Tensor]:
        scenes = [draw_scene(rng, 0) for _ in range(_BATCH)]
        told = reader(words.ids([caption(scene, rng) for scene in scenes]))
        wanted = labels(scenes)
        return {name: F.cross_entropy(logits.float(), wanted[name]) for name, logits in told.items()}

    average = train(COURSE, reader, loss)
    if rank() == 0:
        torch.save(average.encoder.state_dict(), TAUGHT)
