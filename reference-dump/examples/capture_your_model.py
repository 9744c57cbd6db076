"""Capture a model of your own: write a function that returns (module, inputs), and point `capture` at it.

    cd reference-dump/examples
    python -m touchstone_reference capture --factory capture_your_model:tiny_classifier --out /tmp/captured

Every submodule becomes a golden case under its module path. `Linear`, `LayerNorm`, `GELU` and `Embedding` are ops that
`touchstone check` recomputes; `MeanPool` and the classifier as a whole are recorded under their class names.
"""

import torch
from torch import Tensor, nn


class MeanPool(nn.Module):
    """The mean over time: [B, T, C] → [B, C]. A module, so that the capture sees it; as plain code it would not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class Classifier(nn.Module):
    """Token ids [B, T] → class scores [B, classes]."""

    def __init__(self, vocab: int, channels: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels))
        self.pool = MeanPool()
        self.head = nn.Linear(channels, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.pool(x + self.mlp(self.norm(x))))


def tiny_classifier() -> tuple[nn.Module, Tensor]:
    """Random weights will do, but a norm that still is 1 and 0 cannot show a swapped gain and bias: make them random too."""
    torch.manual_seed(7)
    module = Classifier(vocab=101, channels=45, classes=7)
    nn.init.normal_(module.norm.weight, mean=1.0, std=0.3)
    nn.init.normal_(module.norm.bias, std=0.5)
    return module, torch.randint(101, (3, 11))
