"""How the golden cases draw their numbers, and how a single op becomes a case.

The numbers have teeth: weights are random and asymmetric, every gain differs from 1, every bias from 0, and activations
reach beyond 6 in magnitude, where an approximate GELU or a clipped softmax shows.
"""

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .writer import CaseWriter

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# The smallest distance of a gain from 1 and of a bias from 0: far above the rounding of bf16.
OFFSET_MIN = 0.05


def stable_seed(op: str, case: str) -> int:
    """A seed that depends on the name alone, so that a new case leaves the others as they are."""
    return int.from_bytes(hashlib.sha256(f"{op}/{case}".encode()).digest()[:4], "little")


class Draw:
    """Random float32 tensors from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        # Drawn in float64: torch fills float32 by different paths, depending on the size and the CPU.
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).float()

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).float()

    def tokens(self, vocab: int, *shape: int) -> Tensor:
        """Token ids [shape] int64; the first and the last of the vocabulary are among them where two fit."""
        drawn = torch.randint(vocab, shape, generator=self.generator)
        if drawn.numel() > 1:
            drawn.view(-1)[0], drawn.view(-1)[-1] = vocab - 1, 0
        return drawn

    def activations(self, *shape: int) -> Tensor:
        """Standard normal, one in 32 (and the first, at least) between 6 and 9 in magnitude."""
        x = self.normal(*shape)
        outlier = self.uniform(*shape) < 1 / 32
        outlier.view(-1)[0] = True
        return torch.where(outlier, x.sign() * (6 + 3 * self.uniform(*shape)), x)

    def weight(self, out_features: int, in_features: int) -> Tensor:
        """[out, in], standard deviation 1/sqrt(in)."""
        return self.normal(out_features, in_features) / in_features**0.5

    def bias(self, n: int) -> Tensor:
        """[n], standard deviation about 0.5, none closer to 0 than `OFFSET_MIN`."""
        x = self.normal(n)
        return x.sign() * (OFFSET_MIN + 0.5 * x.abs())

    def gain(self, n: int) -> Tensor:
        """[n], around 1, none closer to 1 than `OFFSET_MIN`."""
        return 1 + self.bias(n)


def fill(module: nn.Module, draw: Draw, dtype: str) -> nn.Module:
    """Gives every parameter of a module numbers with teeth and the module the precision of the case."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.copy_(draw.weight(*part.weight.shape))
            elif isinstance(part, nn.LayerNorm):
                part.weight.copy_(draw.gain(*part.weight.shape))
            elif isinstance(part, nn.Embedding):
                part.weight.copy_(draw.activations(*part.weight.shape))
            if isinstance(part, nn.Linear | nn.LayerNorm) and part.bias is not None:
                part.bias.copy_(draw.bias(*part.bias.shape))
    return module.to(DTYPES[dtype]).eval()


def rounded(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors in the precision of the case; token ids stay as they are."""
    return {name: t.to(DTYPES[dtype]) if t.is_floating_point() else t for name, t in tensors.items()}


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in float64, for the truth."""
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def new_case(op: str, case: str, dtype: str, config: dict) -> tuple[CaseWriter, Draw]:
    """An empty case `<case>_<dtype>` and the source of its numbers."""
    name = f"{case}_{dtype}"
    seed = stable_seed(op, name)
    return CaseWriter(op, name, dtype, seed, config), Draw(seed)


def record_op(
    writer: CaseWriter,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    compute: Callable[[dict[str, Tensor]], Tensor],
    exact: bool = False,
) -> CaseWriter:
    """Fills the case of an op with one output `y`: `compute` in the case's dtype, and in float64 as the truth.

    `compute` takes all tensors by name. `exact`: pure data movement, judged to the bit.
    """
    inputs, parameters = rounded(inputs, writer.dtype), rounded(parameters, writer.dtype)
    for name, tensor in inputs.items():
        writer.input(name, tensor)
    for name, tensor in parameters.items():
        writer.parameter(name, tensor)
    tensors = inputs | parameters
    with torch.no_grad():
        y = compute(tensors)
        if exact:
            writer.output("y", y, rule="exact")
        else:
            writer.output("y", y, truth=compute(widened(tensors)))
    return writer
