"""Captions that the decoder draws itself, and how much better than usual each of them is.

Source: Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017; the mean
of the other draws as baseline: Luo, "A Better Variant of Self-Critical Sequence Training", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captioner.config import DecodeConfig, TrainConfig
from captioner.data.dataset import Batch, CaptionDataset, pack
from captioner.data.vocabulary import tokenize
from captioner.metrics.cider import CiderD
from captioner.model.decoder import Decoder
from captioner.model.fused.linear import packed
from captioner.search import Step, search

END = "<eos>"  # counted as a word, so that a caption cut off in the middle scores less


@dataclass(frozen=True)
class Drawn:
    """Captions drawn for the pictures of a batch, as the decoder learns from them."""

    batch: Batch
    weights: Tensor  # (tokens,) how much better than its baseline the caption of a token is
    reward: float  # the mean


class SelfCritical:
    """Draws captions of training pictures and weighs their rewards against a baseline.

    The reward is CIDEr-D, plus `reward_bleu` times the caption's own BLEU-4.
    """

    def __init__(self, data: CaptionDataset, settings: TrainConfig):
        self._vocabulary, self._settings = data.vocabulary, settings
        self._references = [
            [" ".join([*tokenize(caption), END]) for caption in example.captions]
            for example in data.examples
        ]
        self._cider = CiderD(dict(enumerate(self._references)))

    @torch.no_grad()
    def draw(self, decoder: Decoder, batch: Batch, seed: int) -> Drawn:
        """Sample `samples` captions of each image; a decoder in `eval()` draws as it will learn.

        What is drawn depends on the weights, the image and `seed`, not on the rest of the batch.
        The end of a caption that was cut at `max_words` was not drawn and has no weight.
        """
        settings = self._settings
        draws, likeliest = self._captions(decoder, batch, seed)
        rewards = torch.tensor(
            [
                [self._reward(picture, caption) for caption in own]
                for picture, own in zip(batch.examples, draws, strict=True)
            ]
        )  # (B, samples)
        if settings.baseline == "greedy":
            usual = torch.tensor(
                [self._reward(p, own[0]) for p, own in zip(batch.examples, likeliest, strict=True)]
            ).unsqueeze(1)
        else:  # the mean of a picture's other draws
            usual = (rewards.sum(1, keepdim=True) - rewards) / (settings.samples - 1)
        drawn = pack(batch.features, draws, batch.examples)
        advantage = (rewards - usual).flatten()[drawn.order]  # of the rows, longest first
        by_step = [advantage[:size] for size in drawn.captions.batch_sizes]
        if len(by_step) > settings.max_words:
            by_step[-1] = torch.zeros_like(by_step[-1])
        return Drawn(drawn, torch.cat(by_step), float(rewards.mean()))

    def _captions(
        self, decoder: Decoder, batch: Batch, seed: int
    ) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        """The samples of each image, and its greedy caption where that is the baseline."""
        settings = self._settings
        sampled = DecodeConfig(sample=True, captions=settings.samples, max_words=settings.max_words)
        decodes = [sampled]
        if settings.baseline == "greedy":
            decodes.append(DecodeConfig(beam_size=1, max_words=settings.max_words))
        seeds = [(seed, image) for image in batch.examples]
        with packed(decoder):
            memory, state = decoder.start(batch.features.to(next(decoder.parameters()).device))
            step: Step = partial(decoder.step, memory)
            found = [
                search(step, state, decode, seeds=seeds, attention=False) for decode in decodes
            ]
        draws, *likeliest = [[[h.tokens for h in own] for own in images] for images in found]
        return draws, likeliest[0] if likeliest else []

    def _reward(self, picture: int, tokens: Sequence[int]) -> float:
        words = self._vocabulary.decode(tokens)
        if len(tokens) < self._settings.max_words:
            words = [*words, END]
        reward = self._cider.score(picture, words)
        if self._settings.reward_bleu:
            bleu = _bleu(" ".join(words), self._references[picture])
            reward += self._settings.reward_bleu * bleu
        return reward


def _bleu(caption: str, references: Sequence[str]) -> float:
    """BLEU-4 of one caption, unsmoothed, as pycocoevalcap has it for each image."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    _, by_caption = BleuScorer(caption, references, 4).compute_score("closest")
    return float(by_caption[3][0])
