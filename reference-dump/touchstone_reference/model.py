"""The reference GPT: a pre-norm decoder with learned positions, erf GELU and a tied head.

Every operation is a module of its own, additions included, so that a forward hook sees every intermediate
under its module path. Those paths are the names of the taps, and the parameter paths are the names in the checkpoint.

Letters: B batch, T time, S cached + new positions, C channels, H heads, D = C / H, F feed-forward width, V vocabulary.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of `config.json`, named as Hugging Face transformers names them."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    num_hidden_layers: int
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True
    model_type: str = "touchstone_gpt"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}")
        if self.hidden_act != "gelu" or not self.tie_word_embeddings or self.model_type != "touchstone_gpt":
            raise ValueError("this reference has an erf GELU (hidden_act 'gelu'), a tied head and model_type 'touchstone_gpt'")


class Embedding(nn.Module):
    """Token plus position embedding: tokens [B, T] at positions past.. → [B, T, C]."""

    def __init__(self, vocab: int, context: int, channels: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, channels)
        self.position = nn.Embedding(context, channels)

    def forward(self, tokens: Tensor, past: int = 0) -> Tensor:
        positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)
        return self.token(tokens) + self.position(positions)


class CausalAttention(nn.Module):
    """softmax(q kᵀ / sqrt(D)) v with a causal mask: q [B, T, C], k and v [B, S, C] → [B, T, C], heads merged.

    Query t stands at position S - T + t and sees the keys up to and including its own.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = split(q), split(k), split(v)
        time, seen = q.shape[2], k.shape[2]
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.ones(time, seen, dtype=torch.bool, device=q.device).triu(seen - time + 1)
        weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head self-attention; q, k, v without bias, the output projection with one. `cache` holds this layer's (k, v)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.core = CausalAttention(heads)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=1), torch.cat([cache[1], v], dim=1)
            cache[:] = [k, v]
        return self.out(self.core(q, k, v))


class Mlp(nn.Module):
    """down(gelu(up(x))), both linear layers with bias, GELU in its erf form."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(channels, width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(x)))


class Add(nn.Module):
    """The residual addition, a module so that a hook sees its result."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Block(nn.Module):
    """x + attention(ln1(x)), then + mlp(ln2(·))."""

    def __init__(self, channels: int, heads: int, width: int, eps: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels, eps=eps)
        self.attention = SelfAttention(channels, heads)
        self.add1 = Add()
        self.ln2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, width)
        self.add2 = Add()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        x = self.add1(x, self.dropout(self.attention(self.ln1(x), cache)))
        return self.add2(x, self.dropout(self.mlp(self.ln2(x))))


class TiedHead(nn.Module):
    """Logits from the token embedding's own weight: [B, T, C] × [V, C] → [B, T, V], no bias."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T


class Gpt(nn.Module):
    """The whole model: tokens [B, T] → logits [B, T, V]. `caches` is one list a layer, filled and extended by each call."""

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        c = config
        self.config = c
        self.embedding = Embedding(c.vocab_size, c.max_position_embeddings, c.hidden_size)
        self.blocks = nn.ModuleList(
            Block(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.layer_norm_eps, dropout)
            for _ in range(c.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.logits = TiedHead()
        self.dropout = nn.Dropout(dropout)

    def new_caches(self) -> list[list[Tensor]]:
        """Empty caches, one a layer, for a generation that starts."""
        return [[] for _ in self.blocks]

    def forward(self, tokens: Tensor, caches: list[list[Tensor]] | None = None) -> Tensor:
        past = caches[0][0].shape[1] if caches and caches[0] else 0
        x = self.dropout(self.embedding(tokens, past))
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        return self.logits(self.final_norm(x), self.embedding.token.weight)
