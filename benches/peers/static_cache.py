"""The reference GPT as PyTorch decodes it fastest: fixed-size KV cache, fused q, k, v, a whole step as one CUDA graph.

Letters: T positions in this call, P context, C channels, H heads, D = C / H, V vocabulary. Batch is 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from touchstone_reference.model import Gpt

# How the step is written, which decides what the compiler can fuse:
#   sdpa         PyTorch's attention kernel with a mask
#   explicit     attention as two matrix products and a softmax
#   elementwise  for one position, products with weights and cache as multiply and sum, biases added apart: with coordinate
#                descent tuning Inductor then makes fused reductions where it would call cuBLAS
FORMULATIONS = ("sdpa", "explicit", "elementwise")
WARMUP_STEPS = 3


def pick(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """One token from logits [1, V]: greedy at temperature 0, else top-k and a draw. No host round trip. → [1, 1]"""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scaled = logits.float() / temperature
    if top_k:
        smallest = torch.topk(scaled, min(top_k, scaled.shape[-1])).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    # argmax(p / Exp(1)) draws from p, as torch.multinomial does inside; this form also fuses when compiled.
    noise = torch.empty_like(scaled).exponential_(1)
    return (scaled.softmax(-1) / noise).argmax(-1, keepdim=True)


class StaticGpt(nn.Module):
    """Computes what `Gpt` computes, with its weights; keys and values live in buffers [1, H, P, D], one pair a layer."""

    def __init__(self, source: Gpt, formulation: str) -> None:
        super().__init__()
        config = source.config
        self.heads, self.formulation = config.num_attention_heads, formulation
        self.source = source
        self.qkv = nn.ParameterList(
            torch.cat([b.attention.q.weight, b.attention.k.weight, b.attention.v.weight]) for b in source.blocks
        )
        weight = source.final_norm.weight
        shape = (1, self.heads, config.max_position_embeddings, config.hidden_size // self.heads)
        for i in range(config.num_hidden_layers):
            for name in ("keys", "values"):
                self.register_buffer(f"{name}{i}", torch.zeros(shape, dtype=weight.dtype, device=weight.device))

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [1, T] at positions [T] → logits of the last one [1, V]; the cache is extended."""
        source = self.source
        x = source.embedding.token(tokens) + source.embedding.position(positions)
        context = self.keys0.shape[2]
        visible = torch.arange(context, device=tokens.device) <= positions[:, None]  # [T, P]
        for i, block in enumerate(source.blocks):
            x = x + self._linear(block.attention.out, self._attend(i, block.ln1(x), positions, visible))
            x = x + self._linear(block.mlp.down, block.mlp.gelu(self._linear(block.mlp.up, block.ln2(x))))
        return F.linear(source.final_norm(x[:, -1]), source.embedding.token.weight)

    def _attend(self, layer: int, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Attention of x [1, T, C] over the whole cache, the future masked → [1, T, C]."""
        q, k, v = F.linear(x, self.qkv[layer]).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [1, H, T, D]
        keys, values = getattr(self, f"keys{layer}"), getattr(self, f"values{layer}")
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        if self.formulation == "sdpa":
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible).transpose(1, 2).flatten(-2)
        elementwise = self.formulation == "elementwise" and x.shape[1] == 1
        scores = (q * keys).sum(-1)[:, :, None] if elementwise else q @ keys.mT
        weights = (scores / math.sqrt(q.shape[-1])).masked_fill(~visible, -torch.inf).softmax(-1)  # [1, H, T, P]
        y = (weights.mT * values).sum(2, keepdim=True) if elementwise else weights @ values
        return y.transpose(1, 2).flatten(-2)

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """`layer(x)`; in the elementwise form the bias comes apart, since only a product without one is rewritten."""
        return F.linear(x, layer.weight) + layer.bias if self.formulation == "elementwise" else layer(x)


class CompiledDecoder:
    """Batch-1 generation with a compiled step; on CUDA, forward, sampling and bookkeeping are one graph replay a token."""

    def __init__(self, source: Gpt, temperature: float, top_k: int, formulation: str) -> None:
        self.model = StaticGpt(source, formulation).eval()
        self.temperature, self.top_k = temperature, top_k
        weight = source.final_norm.weight
        device, context = weight.device, source.config.max_position_embeddings
        self.token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.written = torch.zeros(context, dtype=torch.long, device=device)
        self.advance = torch.compile(self._step, fullgraph=True, dynamic=False)
        if device.type == "cuda":
            self.advance = self._captured(self.advance)

    @torch.no_grad()
    def generate(self, prompt: Tensor, count: int) -> list[int]:
        """`count` tokens after the prompt [1, T]. All but its last token are prefilled at once; the last starts the steps."""
        start = prompt.shape[1] - 1
        if start:
            self.model(prompt[:, :-1], torch.arange(start, device=prompt.device))
        self.token.copy_(prompt[:, -1:])
        self.position.fill_(start)
        for _ in range(count):
            self.advance()
        return self.written[start : start + count].tolist()

    def _step(self) -> None:
        """One token: reads and writes the buffers alone, so that it can be replayed."""
        following = pick(self.model(self.token, self.position), self.temperature, self.top_k)
        self.written.index_copy_(0, self.position, following[0])
        self.token.copy_(following)
        self.position.add_(1)

    @torch.no_grad()
    def _captured(self, step):
        """The step as a CUDA graph; compilation and autotuning happen in the warm-up, outside the capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                self.position.zero_()
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.position.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay
