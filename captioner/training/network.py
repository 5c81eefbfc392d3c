"""The network in training, and the weights of it that are validated and kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from captioner.config import TrainConfig
from captioner.data.dataset import Batch
from captioner.model.decoder import Decoder
from captioner.model.encoder import Encoder


class Network(nn.Module):
    """The decoder, and the encoder if it learns, too."""

    def __init__(self, decoder: Decoder, encoder: Encoder | None):
        super().__init__()
        self.decoder, self.encoder = decoder, encoder

    def encode(self, batch: Batch) -> Batch:
        """Return a batch of training data with the features (B, L, D) that the decoder takes."""
        if self.encoder is None:
            return batch
        return replace(batch, features=self.encoder.trained_part(batch.features))


class KeptWeights:
    """A running average of the weights, mixed with those at the start.

    Without `average` and `keep_start` they are the weights in training.
    The mean of the weights before and after: Wortsman et al., "Robust fine-tuning", CVPR 2022.
    """

    def __init__(self, network: Network, settings: TrainConfig):
        self._network, self._keep_start = network, settings.keep_start
        self._average: AveragedModel | None = None
        if settings.average:
            average = get_ema_multi_avg_fn(settings.average)
            self._average = AveragedModel(network, multi_avg_fn=average)
        self._start = {}
        if settings.keep_start:
            self._start = {name: w.clone() for name, w in network.state_dict().items()}

    def update(self) -> None:
        """Add the weights after a step to the average."""
        if self._average is not None:
            self._average.update_parameters(self._network)

    def network(self) -> Network:
        """Return a network with the kept weights: a copy if they are mixed with the start."""
        network = self._network
        if self._average is not None:
            network = cast(Network, self._average.module)
        if not self._keep_start:
            return network
        mixed, weights = copy.deepcopy(network), network.state_dict().items()
        mixed.load_state_dict({n: w.lerp(self._start[n], self._keep_start) for n, w in weights})
        return mixed

    def state_dict(self) -> Mapping[str, Any] | None:
        """Return the state of the average, None without one."""
        return None if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average, if there is one."""
        if self._average is not None:
            self._average.load_state_dict(state)
