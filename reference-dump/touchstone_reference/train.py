"""Trains the reference GPT on the characters of a text file and exports a model folder.

The first 90 % of the text is the training split, the rest the validation split. Every evaluation covers the whole
validation split, in float32, on the weights exactly as they would be exported: averaged, and rounded to the export
dtype. The best of them is what is kept.

B batch, T context, V vocabulary.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from . import checkpoint
from .card import model_card
from .errors import BadInput
from .model import CausalAttention, Config, Gpt
from .tokenizer import character_tokenizer, encode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`; the defaults are the committed shakespeare-char model's."""
    option = parser.add_argument
    option("--data", type=Path, required=True, help="text file, UTF-8")
    option("--out", type=Path, required=True, help="model folder to write")
    option("--force", action="store_true", help="replace the model in --out")
    option("--dtype", choices=sorted(checkpoint.DTYPES), default="float32", help="dtype of the exported weights")
    option("--channels", type=int, default=384)
    option("--heads", type=int, default=6)
    option("--ff", type=int, default=1536, help="feed-forward width")
    option("--layers", type=int, default=6)
    option("--context", type=int, default=256, help="positions")
    option("--dropout", type=float, default=0.2)
    option("--batch", type=int, default=64, help="windows a step")
    option("--steps", type=int, default=5000)
    option("--warmup", type=int, default=100, help="steps of linear warm-up")
    option("--lr", type=float, default=1e-3, help="peak learning rate; it decays along a cosine to a tenth")
    option("--beta2", type=float, default=0.99)
    option("--weight-decay", type=float, default=0.1)
    option("--average", type=float, default=0.995, help="decay of the running weight average that is exported; 0: none")
    option("--eval-every", type=int, default=100, help="steps between evaluations")
    option("--seed", type=int, default=1337)
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    option("--no-compile", action="store_true", help="do not use torch.compile (it is used on CUDA only)")
    option("--max-seconds", type=float, default=math.inf, help="stop after this time and export the best so far")
    option("--log", type=Path, help="append one JSON object an evaluation to this file")


@dataclasses.dataclass
class Corpus:
    """A text as token ids, in two splits of shape [tokens] on the training device."""

    name: str
    sha256: str
    tokenizer: Tokenizer
    train: Tensor
    validation: Tensor


@dataclasses.dataclass
class Best:
    """The best evaluation so far: its weights are already rounded to the export dtype."""

    loss: float = math.inf
    step: int = 0
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class TrainingAttention(nn.Module):
    """`CausalAttention` through PyTorch's fused kernel, with dropout on the attention weights. It has no parameters,
    so a model trained with it and a model with the reference form have one and the same checkpoint.
    """

    def __init__(self, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return y.transpose(1, 2).flatten(-2)


def run(args: argparse.Namespace) -> int:
    """Trains, exports, and prints a sample; the `train` subcommand."""
    check_arguments(args)
    torch.manual_seed(args.seed)
    corpus = read_corpus(args.data, args.context, args.device)
    config = Config(
        vocab_size=corpus.tokenizer.get_vocab_size(), max_position_embeddings=args.context, hidden_size=args.channels,
        num_attention_heads=args.heads, intermediate_size=args.ff, num_hidden_layers=args.layers, dtype=args.dtype,
    )
    started = time.perf_counter()
    best = train(args, config, corpus)
    seconds = time.perf_counter() - started
    model = Gpt(config).eval()
    model.load_state_dict(best.weights)
    sample = greedy_text(model, corpus.tokenizer, "\n", 200)
    card = model_card(args, config, corpus, best, seconds, sample)
    checkpoint.save(args.out, config, best.weights, corpus.tokenizer, card)
    say(f"wrote {args.out}: validation loss {best.loss:.4f} at step {best.step}, {seconds:.0f} s; greedy sample:")
    say(sample)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before the training starts."""
    for field in ("channels", "heads", "ff", "layers", "context", "batch", "steps", "eval_every"):
        if getattr(args, field) < 1:
            raise BadInput(f"--{field.replace('_', '-')} is {getattr(args, field)}, expected at least 1")
    if args.channels % args.heads:
        raise BadInput(f"--channels {args.channels} is no multiple of --heads {args.heads}")
    for field in ("dropout", "average"):
        if not 0 <= getattr(args, field) < 1:
            raise BadInput(f"--{field} is {getattr(args, field)}, expected 0 or more and under 1")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {args.device}: PyTorch sees no CUDA GPU")
    if (args.out / "model.safetensors").exists() and not args.force:
        raise BadInput(f"{args.out} already holds a model; --force replaces it")


def read_corpus(path: Path, context: int, device: str) -> Corpus:
    """Reads and tokenizes the text; both splits must hold more than one window of `context` tokens."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from error
    cut = len(text) * 9 // 10
    if len(text) - cut <= context or cut <= context:
        raise BadInput(f"{path}: {len(text)} characters; both splits (90 %, 10 %) must be longer than the context of {context}")
    tokenizer = character_tokenizer(text)
    ids = torch.tensor(encode(tokenizer, text), device=device)
    return Corpus(path.name, hashlib.sha256(raw).hexdigest(), tokenizer, ids[:cut], ids[cut:])


def train(args: argparse.Namespace, config: Config, corpus: Corpus) -> Best:
    """The training loop; returns the best evaluation."""
    model = initial_model(config, args.dropout).to(args.device)
    judge = Gpt(config).to(args.device).eval()
    optimizer = make_optimizer(model, args)
    cuda = args.device.startswith("cuda")
    step_model = compiled(model) if cuda and not args.no_compile else model
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    say(f"{sum(p.numel() for p in parameters):,} parameters on {args.device}, {len(corpus.train):,} + {len(corpus.validation):,} tokens, seed {args.seed}")

    best, started = Best(), time.perf_counter()
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        x, y = random_windows(corpus.train, args.batch, args.context)
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            loss = F.cross_entropy(step_model(x).flatten(0, 1).float(), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # At first the average follows closely: the initial weights must not linger in it.
        decay = min(args.average, step / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        overtime = time.perf_counter() - started > args.max_seconds
        if step % args.eval_every == 0 or step == args.steps or overtime:
            val_loss = evaluate(model, average, judge, corpus.validation, step, best)
            report(args, step, loss.item(), val_loss, time.perf_counter() - started)
        if overtime:
            say(f"stopped at step {step}: --max-seconds {args.max_seconds:g} is over")
            break
    return best


def initial_model(config: Config, dropout: float) -> Gpt:
    """N(0, 0.02) weights and zero biases; projections into the residual stream are scaled by 1/sqrt(2 layers)."""
    model = Gpt(config, dropout)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            into_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * config.num_hidden_layers) if into_stream else 1))
    for block in model.blocks:
        assert isinstance(block.attention.core, CausalAttention)
        block.attention.core = TrainingAttention(config.num_attention_heads, dropout)
    return model


def make_optimizer(model: Gpt, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, args.beta2), fused=True)


def compiled(model: Gpt) -> nn.Module:
    """The model through torch.compile; where that cannot work (no C compiler, say) PyTorch warns and runs it eagerly."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    return torch.compile(model)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine from the peak to a tenth of it at the last step."""
    if step <= args.warmup:
        return args.lr * step / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def random_windows(tokens: Tensor, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (the same, one position on), [B, T] each."""
    starts = torch.randint(len(tokens) - context, (batch, 1), device=tokens.device)
    windows = tokens[starts + torch.arange(context + 1, device=tokens.device)]
    return windows[:, :-1], windows[:, 1:]


def evaluate(model: Gpt, average: list[Tensor], judge: Gpt, validation: Tensor, step: int, best: Best) -> float:
    """Rounds the averaged weights to the export dtype, measures them, and keeps them if they are the best; the loss."""
    dtype = checkpoint.DTYPES[judge.config.dtype]
    weights = {name: value.to(dtype) for (name, _), value in zip(model.named_parameters(), average, strict=True)}
    judge.load_state_dict(weights)
    loss = split_loss(judge, validation)
    if loss < best.loss:
        best.loss, best.step = loss, step
        best.weights = {name: value.cpu().clone() for name, value in weights.items()}
    return loss


@torch.no_grad()
def split_loss(model: Gpt, tokens: Tensor, batch: int = 64) -> float:
    """Mean cross entropy (nats a token) over a whole split, in non-overlapping windows; the last one may be shorter."""
    context = model.config.max_position_embeddings
    inputs, targets = tokens[:-1], tokens[1:]
    total = 0.0
    for x, y in zip(inputs.split(batch * context), targets.split(batch * context)):
        whole = len(x) // context * context
        for part_x, part_y in ((x[:whole].view(-1, context), y[:whole]), (x[None, whole:], y[whole:])):
            if part_x.numel():
                total += F.cross_entropy(model(part_x).flatten(0, 1).float(), part_y, reduction="sum").item()
    return total / len(inputs)


@torch.no_grad()
def greedy_text(model: Gpt, tokenizer: Tokenizer, prompt: str, count: int) -> str:
    """`count` greedy characters after `prompt`; the window slides once the context is full."""
    tokens = torch.tensor([encode(tokenizer, prompt)])
    for _ in range(count):
        logits = model(tokens[:, -model.config.max_position_embeddings :])[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokenizer.decode(tokens[0].tolist())


def report(args: argparse.Namespace, step: int, train_loss: float, val_loss: float, seconds: float) -> None:
    """One line of progress on stderr, one JSON line in the log."""
    per_step = seconds / step
    if not math.isfinite(train_loss):
        raise BadInput(f"the training loss is {train_loss} at step {step}; try a smaller --lr than {args.lr:g}")
    say(
        f"step {step:>6}/{args.steps}  train {train_loss:.4f}  val {val_loss:.4f}  "
        f"{per_step * 1e3:.1f} ms/step  ETA {per_step * (args.steps - step):.0f} s"
    )
    if args.log:
        line = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "seconds": round(seconds, 2)}
        with args.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def say(line: str) -> None:
    """Progress goes to stderr, at once."""
    print(line, file=sys.stderr, flush=True)
