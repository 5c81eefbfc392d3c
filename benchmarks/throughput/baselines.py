"""The baselines: the loops as they are commonly written.

"Authors" is the style of the h-detach authors' code: an LSTM cell of two matrix products, one
Bernoulli sample per step, every caption run to the longest one. "Tutorial" is that of
a-PyTorch-Tutorial-to-Image-Captioning: rows sorted by length, the batch shrinking by step. Both
copy an image's features for each of its rows.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from captioner.data.dataset import Batch
from captioner.data.vocabulary import BOS, EOS, PAD

State = tuple[Tensor, Tensor]  # h and c


class TwoProductCell(nn.Module):
    """The authors' LSTM cell: one product for the input, one for h, then chunk."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.hidden = nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (self.input(x) + self.hidden(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class CellLoop(nn.Module):
    """A Python loop over a cell, h detached at random steps: x (T, B, I) -> output (T, B, H)."""

    def __init__(self, cell: nn.LSTMCell | TwoProductCell, detach_prob: float = 0.0):
        super().__init__()
        self.cell = cell
        self.detach_prob = detach_prob

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], self.cell.hidden_size)
        outputs = []
        for x_t in x.unbind():
            if random.random() < self.detach_prob:
                h = h.detach()
            h, c = self.cell(x_t, (h, c))
            outputs.append(h)
        return torch.stack(outputs)


class Rows:
    """A batch with a padded row per caption: captions and targets (R, T), longest first."""

    def __init__(self, batch: Batch, device: torch.device):
        inputs, sizes = batch.captions.inputs, torch.tensor(batch.captions.batch_sizes)
        captions, self.lengths = pad_packed_sequence(PackedSequence(inputs, sizes), True, PAD)
        targets, _ = pad_packed_sequence(PackedSequence(batch.targets, sizes), True, PAD)
        self.captions, self.targets = captions.to(device), targets.to(device)
        self.image = batch.captions.image.to(device)


class AttendNet(nn.Module):
    """The tutorial's decoder with attention; the captioner's own has a deeper output layer."""

    def __init__(
        self,
        dim: int,
        vocabulary_size: int,
        size: int,
        cell: type[nn.LSTMCell] | type[TwoProductCell] = nn.LSTMCell,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.encoder_att = nn.Linear(dim, size)
        self.decoder_att = nn.Linear(size, size)
        self.full_att = nn.Linear(size, 1)
        self.f_beta = nn.Linear(size, dim)
        self.init_h = nn.Linear(dim, size)
        self.init_c = nn.Linear(dim, size)
        self.embed = nn.Embedding(vocabulary_size, size)
        self.cell = cell(size + dim, size)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(size, vocabulary_size)

    def start(self, features: Tensor) -> State:
        mean = features.mean(1)
        return self.init_h(mean), self.init_c(mean)

    def attend(self, features: Tensor, keys: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return gated context (n, D) and attention (n, L); project the features without `keys`."""
        if keys is None:
            keys = self.encoder_att(features)  # (n, L, A)
        scores = self.full_att((keys + self.decoder_att(h).unsqueeze(1)).relu()).squeeze(2)
        attention = scores.softmax(1)
        context = (features * attention.unsqueeze(2)).sum(1)
        return self.f_beta(h).sigmoid() * context, attention

    def step(self, words: Tensor, state: State, features: Tensor, keys: Tensor | None) -> State:
        """Return the next (h, c) after `words` (n,)."""
        context, _ = self.attend(features, keys, state[0])
        h, c = self.cell(torch.cat([self.embed(words), context], 1), state)
        return h, c


def tutorial_attend(
    net: AttendNet, features: Tensor, rows: Rows, *, hoist: bool
) -> tuple[Tensor, Tensor]:
    """Return predictions (R, T, V), attention (R, T, L); `hoist` projects the features once."""
    copies = features[rows.image]  # (R, L, D)
    keys = net.encoder_att(copies) if hoist else None
    h, c = net.start(copies)
    words = net.embed(rows.captions)
    predictions = copies.new_zeros(*rows.captions.shape, net.fc.out_features)
    attentions = copies.new_zeros(*rows.captions.shape, copies.shape[1])
    for t in range(rows.captions.shape[1]):
        size = int((rows.lengths > t).sum())
        alive_keys = keys[:size] if keys is not None else None
        context, attention = net.attend(copies[:size], alive_keys, h[:size])
        h, c = net.cell(torch.cat([words[:size, t], context], 1), (h[:size], c[:size]))
        predictions[:size, t] = net.fc(net.dropout(h))
        attentions[:size, t] = attention
    return predictions, attentions


def authors_attend(
    net: AttendNet, features: Tensor, rows: Rows, detach_prob: float
) -> tuple[Tensor, Tensor]:
    """Return predictions (R, T, V), attention (R, T, L); every row runs to the longest."""
    copies = features[rows.image]  # (R, L, D)
    h, c = net.start(copies)
    predictions, attentions = [], []
    for t in range(rows.captions.shape[1]):
        context, attention = net.attend(copies, None, h)
        if random.random() < detach_prob:
            h = h.detach()
        x = torch.cat([net.embed(rows.captions[:, t]), context], 1)
        h, c = net.cell(x, (h, c))
        predictions.append(net.fc(net.dropout(h)))
        attentions.append(attention)
    return torch.stack(predictions, 1), torch.stack(attentions, 1)


class ShowTellNet(nn.Module):
    """The image as the first word of an LSTM."""

    def __init__(
        self, dim: int, vocabulary_size: int, size: int, recurrent: type[nn.Module] = nn.LSTM
    ):
        super().__init__()
        self.image = nn.Linear(dim, size)
        self.embed = nn.Embedding(vocabulary_size, size)
        self.recurrent = recurrent(size, size)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(size, vocabulary_size)

    def inputs(self, features: Tensor, rows: Rows) -> Tensor:
        """Return the image and the words of every caption (R, 1 + T, E)."""
        image = self.image(features.mean(1)[rows.image])
        return torch.cat([image.unsqueeze(1), self.embed(rows.captions)], 1)


def packed_show_tell(net: ShowTellNet, features: Tensor, rows: Rows) -> Tensor:
    """Return predictions (R, T, V) of nn.LSTM over packed captions, without h-detach."""
    packed = pack_padded_sequence(net.inputs(features, rows), rows.lengths + 1, True)
    output, _ = pad_packed_sequence(net.recurrent(packed)[0], True)
    predictions: Tensor = net.fc(net.dropout(output[:, 1:]))
    return predictions


def authors_show_tell(net: ShowTellNet, features: Tensor, rows: Rows, detach_prob: float) -> Tensor:
    """Return predictions (R, T, V) of a loop over a cell; every row runs to the longest."""
    x = net.inputs(features, rows)
    h = c = x.new_zeros(len(x), x.shape[2])
    predictions = []
    for t in range(x.shape[1]):
        if random.random() < detach_prob:
            h = h.detach()
        h, c = net.recurrent(x[:, t], (h, c))
        if t > 0:
            predictions.append(net.fc(net.dropout(h)))
    return torch.stack(predictions, 1)


def padded_loss(predictions: Tensor, attention: Tensor | None, rows: Rows) -> Tensor:
    """Return the cross-entropy of padded predictions without the padding, and the penalty."""
    logits = predictions.float().flatten(0, 1)
    loss = F.cross_entropy(logits, rows.targets.flatten(), ignore_index=PAD)
    return loss + _penalty(attention)


def packed_loss(predictions: Tensor, attention: Tensor | None, rows: Rows) -> Tensor:
    """Return the same by packing the predictions first, as the tutorial does."""
    logits = pack_padded_sequence(predictions.float(), rows.lengths, True).data
    targets = pack_padded_sequence(rows.targets, rows.lengths, True).data
    return F.cross_entropy(logits, targets) + _penalty(attention)


def _penalty(attention: Tensor | None) -> Tensor | float:
    return 0.0 if attention is None else ((1 - attention.float().sum(1)) ** 2).mean()


@torch.no_grad()
def beam_one_by_one(
    net: AttendNet, features: Tensor, beams: int, max_words: int
) -> list[list[int]]:
    """Search as the tutorial does: one image at a time, its features copied for each beam."""
    return [_beam_of_one(net, image, beams, max_words) for image in features.split(1)]


def _beam_of_one(net: AttendNet, features: Tensor, beams: int, max_words: int) -> list[int]:
    rows = features.expand(beams, -1, -1)
    words = torch.full((beams,), BOS)
    written = torch.empty(beams, 0, dtype=torch.long)
    scores = torch.zeros(beams, 1)
    complete: list[tuple[float, list[int]]] = []
    state = net.start(rows)
    for step in range(max_words):
        state = net.step(words, state, rows, None)
        totals = scores + net.fc(state[0]).log_softmax(1)  # (k, V)
        open_beams = beams - len(complete)
        top, flat = (totals[0] if step == 0 else totals.flatten()).topk(open_beams)
        parent, words = flat // totals.shape[1], flat % totals.shape[1]
        written = torch.cat([written[parent], words.unsqueeze(1)], 1)
        for k in (words == EOS).nonzero().flatten().tolist():
            complete.append((float(top[k]), written[k, :-1].tolist()))
        alive = words != EOS
        parent, words, written = parent[alive], words[alive], written[alive]
        scores = top[alive].unsqueeze(1)
        if len(complete) == beams:
            break
        state, rows = (state[0][parent], state[1][parent]), rows[parent]
    complete += [
        (float(score), tokens.tolist()) for score, tokens in zip(scores, written, strict=True)
    ]
    return max(complete)[1]


@torch.no_grad()
def beam_batched(net: AttendNet, features: Tensor, beams: int, max_words: int) -> list[list[int]]:
    """Search all images at once, features copied for each beam; an ended beam repeats EOS."""
    images = len(features)
    keys = net.encoder_att(features).repeat_interleave(beams, 0)
    rows = features.repeat_interleave(beams, 0)  # (B * K, L, D)
    words = torch.full((images * beams,), BOS)
    written = torch.empty(images * beams, 0, dtype=torch.long)
    scores = torch.full((images, beams), -torch.inf)
    scores[:, 0] = 0
    state = net.start(rows)
    first = torch.arange(0, images * beams, beams).unsqueeze(1)
    for _ in range(max_words):
        state = net.step(words, state, rows, keys)
        log_probs = net.fc(state[0]).log_softmax(1)
        log_probs[words == EOS] = -torch.inf
        log_probs[words == EOS, EOS] = 0
        totals = (scores.view(-1, 1) + log_probs).view(images, -1)
        scores, flat = totals.topk(beams)  # (B, K)
        parent = (flat // log_probs.shape[1] + first).flatten()
        words = (flat % log_probs.shape[1]).flatten()
        written = torch.cat([written[parent], words.unsqueeze(1)], 1)
        state = (state[0][parent], state[1][parent])
        if bool((words == EOS).all()):
            break
    return [_until_end(tokens) for tokens in written[::beams].tolist()]


@torch.no_grad()
def greedy(net: AttendNet, features: Tensor, max_words: int) -> list[list[int]]:
    """Take the likeliest word at every step, all images at once, keys projected once."""
    keys = net.encoder_att(features)
    words = torch.full((len(features),), BOS)
    state, written = net.start(features), []
    for _ in range(max_words):
        state = net.step(words, state, features, keys)
        words = net.fc(state[0]).argmax(1)
        written.append(words)
    return [_until_end(tokens) for tokens in torch.stack(written, 1).tolist()]


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens


def plain_network(name: str) -> tuple[nn.Module, int]:
    """Return the convolutions of an encoder as its library has them, and its image size."""
    if name == "efficientnet_lite2":
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite2", image_size=260)
        network.forward = network.extract_features
        return network.eval(), 260
    from torchvision import models

    return nn.Sequential(*list(models.get_model(name).children())[:-2]).eval(), 224


@torch.no_grad()
def plain_features(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return features (B, L, D) of pixels uint8 (B, 3, S, S) in the default layout."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x: Tensor = network((pixels.float() / 255 - mean) / std)
    return x.flatten(2).transpose(1, 2)
