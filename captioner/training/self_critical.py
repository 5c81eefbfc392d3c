"""The self-critical objective: sample captions and reinforce those that beat a baseline.

Source: Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017; the mean
of the other samples as baseline: Luo, "A Better Variant of Self-Critical Sequence Training", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from captioner.config import DecodeConfig, TrainConfig
from captioner.data.dataset import Batch, CaptionDataset, pack
from captioner.data.vocabulary import tokenize
from captioner.metrics.bleu import bleu_4
from captioner.metrics.cider import CiderD
from captioner.model import Decoder
from captioner.model.decoder import Prediction
from captioner.model.fused.linear import packed
from captioner.search import Step, search
from captioner.training.loss import attention_penalty, cross_entropy
from captioner.training.objective import Target

END = "<eos>"  # counted as a word, so that a caption cut off in the middle scores less


class SelfCritical:
    """Samples captions of training images and weights them by reward minus baseline.

    The reward is CIDEr-D, plus `reward_bleu` times the caption's own BLEU-4.
    """

    dropout = False  # a caption is learnt by the network that sampled it

    def __init__(self, data: CaptionDataset, settings: TrainConfig):
        self._vocabulary, self._settings = data.vocabulary, settings
        self._references = [
            [" ".join([*tokenize(caption), END]) for caption in example.captions]
            for example in data.examples
        ]
        self._cider = CiderD(dict(enumerate(self._references)))

    @torch.no_grad()
    def target(self, decoder: Decoder, batch: Batch, step: int) -> Target:
        """Sample `samples` captions of each image; the log gets their mean reward.

        A sample depends on the weights, the image, the seed and the step, not on the rest of the
        batch. The end of a caption that was cut at `max_words` was not sampled: its weight is 0.
        """
        settings = self._settings
        samples, greedy = self._captions(decoder, batch, settings.seed * 1_000_003 + step)
        rewards = torch.tensor(
            [
                [self._reward(example, caption) for caption in own]
                for example, own in zip(batch.examples, samples, strict=True)
            ]
        )  # (B, samples)
        if settings.baseline == "greedy":
            baseline = torch.tensor(
                [self._reward(e, own[0]) for e, own in zip(batch.examples, greedy, strict=True)]
            ).unsqueeze(1)
        else:  # the mean of the image's other samples
            baseline = (rewards.sum(1, keepdim=True) - rewards) / (settings.samples - 1)
        sampled = pack(batch.features, samples, batch.examples)
        advantage = (rewards - baseline).flatten()[sampled.order]  # longest caption first
        by_step = [advantage[:size] for size in sampled.captions.batch_sizes]
        if len(by_step) > settings.max_words:
            by_step[-1] = torch.zeros_like(by_step[-1])
        device = batch.features.device
        figures = {"reward": float(rewards.mean())}
        return Target(sampled.to(device), torch.cat(by_step).to(device), figures)

    def loss(self, prediction: Prediction, target: Target) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and the plain cross-entropy per token (nats).

        The gradient is that of REINFORCE (Williams 1992; Rennie et al. 2017, equation 7).
        """
        sizes = target.batch.captions.batch_sizes
        loss, plain = cross_entropy(
            prediction, target.batch.targets, weights=target.weights, begins=sizes[0]
        )
        return loss + attention_penalty(prediction, sizes, self._settings.attention_penalty), plain

    def _captions(
        self, decoder: Decoder, batch: Batch, seed: int
    ) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        """Return the samples of each image, and its greedy caption if that is the baseline."""
        settings = self._settings
        sampled = DecodeConfig(sample=True, captions=settings.samples, max_words=settings.max_words)
        decodes = [sampled]
        if settings.baseline == "greedy":
            decodes.append(DecodeConfig(beam_size=1, max_words=settings.max_words))
        seeds = [(seed, example) for example in batch.examples]
        with packed(decoder):
            memory, state = decoder.start(batch.features)
            step: Step = partial(decoder.step, memory)
            found = [
                search(step, state, decode, seeds=seeds, attention=False) for decode in decodes
            ]
        samples, *greedy = [[[h.tokens for h in own] for own in images] for images in found]
        return samples, greedy[0] if greedy else []

    def _reward(self, example: int, tokens: Sequence[int]) -> float:
        words = self._vocabulary.decode(tokens)
        if len(tokens) < self._settings.max_words:
            words = [*words, END]
        reward = self._cider.score(example, words)
        if self._settings.reward_bleu:
            bleu = bleu_4(" ".join(words), self._references[example])
            reward += self._settings.reward_bleu * bleu
        return reward
