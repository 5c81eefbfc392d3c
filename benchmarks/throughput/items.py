"""The items: the jobs to measure, with their sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.throughput import products
from benchmarks.throughput.baselines import (
    AttendNet,
    CellLoop,
    Rows,
    ShowTellNet,
    TwoProductCell,
    authors_attend,
    authors_show_tell,
    beam_batched,
    beam_one_by_one,
    greedy,
    packed_loss,
    packed_show_tell,
    padded_loss,
    plain_features,
    plain_network,
    tutorial_attend,
)
from benchmarks.throughput.measure import OURS, Item, ItemMaker, Run
from benchmarks.throughput.products import CoreSizes, DecoderSizes
from captioner.config import DecodeConfig, EncoderConfig, ModelConfig, TrainConfig
from captioner.data.dataset import Batch, pack
from captioner.data.images import open_image
from captioner.model import Decoder, make_decoder
from captioner.model.encoder import Encoder
from captioner.model.fused.linear import PackedWeights
from captioner.model.fused.linear import packed as packed_weights
from captioner.model.lstm import HDetachLSTM
from captioner.pipeline import load
from captioner.search import search
from captioner.tokens import EOS, SPECIAL
from captioner.training.loss import caption_loss
from captioner.training.run import make_optimizer

DETACH = 0.25
MAX_WORDS = 20
DROPOUT = 0.5
CELL_LOOP, AUTHORS, NN_LSTM = "nn.LSTMCell loop", "authors' loop", "nn.LSTM"
ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "checkpoints" / "samples" / "astronaut.jpg"
CHECKPOINT = ROOT / "checkpoints" / "coco_flickr8k"

QUICK_CORE = CoreSizes(3, 2, 4, 8, True)
QUICK = DecoderSizes(images=2, captions=2, cells=4, dim=16, vocabulary=30, hidden=8)


def core(sizes: CoreSizes, quick: bool, device: torch.device) -> Item:
    """Measure forward and backward of one LSTM."""
    if quick:
        sizes = QUICK_CORE
    I, H = sizes.input_size, sizes.hidden

    def side(build: Callable[[], nn.Module]) -> Run:
        x = torch.randn(sizes.steps, sizes.batch, I, device=device, requires_grad=sizes.input_grad)
        net = build().to(device)

        def run() -> None:
            x.grad = None
            net.zero_grad()
            with _precision(device):
                output = net(x)
            (output[0] if isinstance(output, tuple) else output).sum().backward()

        return run

    return Item(
        unit="sequences",
        units=sizes.batch,
        sides={
            OURS: partial(side, lambda: HDetachLSTM(I, H, detach_prob=DETACH)),
            CELL_LOOP: partial(side, lambda: CellLoop(nn.LSTMCell(I, H), DETACH)),
            NN_LSTM: partial(side, lambda: nn.LSTM(I, H)),
            AUTHORS: partial(side, lambda: CellLoop(TwoProductCell(I, H), DETACH)),
        },
        flops=products.core(sizes, DETACH),
    )


def train_step(decoder: str, sizes: DecoderSizes, quick: bool, device: torch.device) -> Item:
    """Measure one training step of a decoder."""
    sizes = QUICK if quick else sizes
    batch = _batch(sizes)

    def plain(loss: Callable[[Any, Tensor, Rows], Tensor], kind: Any, cell: Any) -> Run:
        net = kind(sizes.dim, sizes.vocabulary, sizes.hidden, cell).to(device)
        features, rows = batch.features.to(device), Rows(batch, device)
        optimizer = torch.optim.Adam(net.parameters(), 4e-4)
        return _training_step(net, optimizer, lambda: loss(net, features, rows), device)

    count, others = _TRAINED[decoder]
    return Item(
        unit="captions",
        units=sizes.images * sizes.captions,
        sides={
            OURS: partial(_our_training, decoder, sizes, batch, device),
            **{name: partial(plain, *other) for name, other in others.items()},
        },
        flops=count(sizes, len(batch.targets), DETACH),
        memory=sizes.cells == 196,
    )


def _authors_attend(net: AttendNet, features: Tensor, rows: Rows) -> Tensor:
    return padded_loss(*authors_attend(net, features, rows, DETACH), rows)


def _tutorial_attend(hoist: bool, net: AttendNet, features: Tensor, rows: Rows) -> Tensor:
    return packed_loss(*tutorial_attend(net, features, rows, hoist=hoist), rows)


def _authors_show_tell(net: ShowTellNet, features: Tensor, rows: Rows) -> Tensor:
    return padded_loss(authors_show_tell(net, features, rows, DETACH), None, rows)


def _packed_show_tell(net: ShowTellNet, features: Tensor, rows: Rows) -> Tensor:
    return packed_loss(packed_show_tell(net, features, rows), None, rows)


# The count of the products; loss, network and cell of each baseline.
_TRAINED: dict[str, tuple[Callable[..., float], dict[str, tuple[Any, Any, Any]]]] = {
    "show_attend_tell": (
        products.train_show_attend_tell,
        {
            AUTHORS: (_authors_attend, AttendNet, TwoProductCell),
            "tutorial": (partial(_tutorial_attend, False), AttendNet, nn.LSTMCell),
            "tutorial, keys hoisted": (partial(_tutorial_attend, True), AttendNet, nn.LSTMCell),
        },
    ),
    "show_tell": (
        products.train_show_tell,
        {
            AUTHORS: (_authors_show_tell, ShowTellNet, TwoProductCell),
            "packed nn.LSTM": (_packed_show_tell, ShowTellNet, partial(nn.LSTM, batch_first=True)),
        },
    ),
    "adaptive": (products.train_adaptive, {}),
}


def find_captions(beams: int, sizes: DecoderSizes, quick: bool, device: torch.device) -> Item:
    """Measure a search with `beams` hypotheses; no caption ends before MAX_WORDS."""
    sizes = QUICK if quick else sizes
    features = _features(sizes)

    def ours() -> Run:
        model = ModelConfig(
            embed_dim=sizes.hidden, hidden_dim=sizes.hidden, attention_dim=sizes.hidden
        )
        decoder = make_decoder(model, sizes.vocabulary, sizes.dim).eval()
        _never_end(decoder.out)
        settings = DecodeConfig(beam_size=beams, max_words=MAX_WORDS)
        weights = PackedWeights(decoder)
        return lambda: _search(decoder, weights, features, settings)

    def side(find: Callable[[AttendNet, Tensor], object]) -> Run:
        net = AttendNet(sizes.dim, sizes.vocabulary, sizes.hidden).eval()
        _never_end(net.fc)
        return lambda: find(net, features)

    plain: dict[str, Callable[..., object]] = {
        "tutorial, one by one": partial(beam_one_by_one, beams=beams, max_words=MAX_WORDS),
        "batched copies": partial(beam_batched, beams=beams, max_words=MAX_WORDS),
    }
    if beams == 1:
        plain = {"batched loop": partial(greedy, max_words=MAX_WORDS)}
    return Item(
        unit="images",
        units=sizes.images,
        sides={OURS: ours, **{name: partial(side, find) for name, find in plain.items()}},
        flops=products.search_show_attend_tell(sizes, beams, MAX_WORDS),
        memory=beams > 1,
    )


def encode(name: str, quick: bool, device: torch.device) -> Item:
    """Measure an encoder with random weights."""
    network, side = plain_network(name)
    images = 1 if quick else 8
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)

    def ours() -> Run:
        encoder = Encoder(EncoderConfig(name=name, weights="none"))
        return lambda: _inference(encoder, pixels)

    return Item(
        unit="images",
        units=images,
        sides={OURS: ours, "default layout": lambda: partial(plain_features, network, pixels)},
        flops=_flops_of(lambda: plain_features(network, pixels)),
    )


def photo(quick: bool, device: torch.device) -> Item:
    """Measure the way from an image file to its caption, with the shipped checkpoint."""
    model = load(CHECKPOINT)
    weights = PackedWeights(model.decoder)

    @torch.inference_mode()
    def stages() -> dict[str, float]:
        laps = [time.process_time()]

        def done(value: Any) -> Any:
            laps.append(time.process_time())
            return value

        image = done(open_image(PHOTO))
        pixels = done(model.encoder.preprocess(image).unsqueeze(0))
        features = done(model.encoder(pixels))
        settings = DecodeConfig(beam_size=5, captions=1)
        with packed_weights(weights):
            memory, state = done(model.decoder.start(features))
            found = done(search(partial(model.decoder.step, memory), state, settings))
        done(" ".join(model.vocabulary.decode(found[0][0].tokens)))
        names = ("open", "preprocess", "encode", "start", "search", "words")
        return {name: end - begin for name, begin, end in zip(names, laps, laps[1:], strict=False)}

    return Item(
        unit="photographs",
        units=1,
        sides={OURS: lambda: lambda: model.caption(PHOTO, beam_size=5)},
        stages=lambda: stages,
    )


_GRID7 = DecoderSizes(images=16, captions=5, cells=49, dim=2048, vocabulary=9490, hidden=512)
_GRID14 = DecoderSizes(images=16, captions=5, cells=196, dim=2048, vocabulary=9490, hidden=512)
_POOLED = DecoderSizes(images=16, captions=5, cells=1, dim=2048, vocabulary=9490, hidden=512)

ITEMS: dict[str, ItemMaker] = {
    "core-copying": partial(core, CoreSizes(320, 100, 1, 128, False)),
    "core-mnist": partial(core, CoreSizes(784, 100, 1, 100, False)),
    "core-captioning": partial(core, CoreSizes(16, 80, 512, 512, True)),
    "train-attend-7x7": partial(train_step, "show_attend_tell", _GRID7),
    "train-attend-14x14": partial(train_step, "show_attend_tell", _GRID14),
    "train-showtell": partial(train_step, "show_tell", _POOLED),
    "train-adaptive": partial(train_step, "adaptive", _GRID7),
    "beam-5": partial(find_captions, 5, _GRID14),
    "greedy": partial(find_captions, 1, _GRID14),
    "encoder-lite2": partial(encode, "efficientnet_lite2"),
    "encoder-resnet50": partial(encode, "resnet50"),
    "photo": photo,
}
FILES = {"photo": (PHOTO, CHECKPOINT)}  # read by an item
GPU_ITEMS = tuple(name for name in ITEMS if name.startswith(("core-", "train-")))


def _our_training(decoder: Any, sizes: DecoderSizes, batch: Batch, device: torch.device) -> Run:
    H = sizes.hidden
    model = ModelConfig(decoder, embed_dim=H, hidden_dim=H, attention_dim=H, dropout=DROPOUT)
    net = make_decoder(model, sizes.vocabulary, sizes.dim).to(device)
    batch = batch.to(device)

    def loss() -> Tensor:
        prediction = net(batch.features, batch.captions, detach_prob=DETACH)
        return caption_loss(prediction, batch.targets, batch.captions.batch_sizes, TrainConfig())[0]

    return _training_step(net, make_optimizer(TrainConfig(), net), loss, device)


def _training_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor],
    device: torch.device,
) -> Run:  # fmt: skip
    net.train()

    def run() -> None:
        with _precision(device):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()

    return run


@torch.inference_mode()
def _search(
    decoder: Decoder, weights: PackedWeights, features: Tensor, settings: DecodeConfig
) -> object:
    with packed_weights(weights):
        memory, state = decoder.start(features)
        return search(partial(decoder.step, memory), state, settings)


@torch.inference_mode()
def _inference(encoder: Encoder, pixels: Tensor) -> object:
    return encoder(pixels)


def _precision(device: torch.device) -> AbstractContextManager[object]:
    on_gpu = device.type == "cuda"
    return torch.autocast(device.type, torch.bfloat16, enabled=on_gpu)


def _features(sizes: DecoderSizes) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sizes.images, sizes.cells, sizes.dim, generator=generator).relu()


def _batch(sizes: DecoderSizes) -> Batch:
    """Make random captions of about 10.5 words, at most MAX_WORDS, as in COCO."""
    generator = torch.Generator().manual_seed(2)
    shape = (sizes.images, sizes.captions)
    lengths = (torch.randn(shape, generator=generator) * 2.4 + 10.5).round().clamp(5, MAX_WORDS)
    captions = [
        [
            torch.randint(len(SPECIAL), sizes.vocabulary, (length,), generator=generator).tolist()
            for length in group
        ]
        for group in lengths.int().tolist()
    ]
    return pack(_features(sizes), captions)


def _never_end(out: nn.Linear) -> None:
    with torch.no_grad():
        out.bias[EOS] = -1e4


def _flops_of(run: Run) -> float:
    """Count the operations of the products and convolutions of a run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
