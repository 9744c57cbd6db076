"""The card (README.md) of an exported model: what it is, from what, how well, and the command that makes it again."""

import argparse
import shlex

import torch

from .model import Config, Gpt

# The options that decide the result, as `train.add_arguments` names them.
RECIPE = (
    "dtype", "channels", "heads", "ff", "layers", "context", "dropout", "batch", "steps", "warmup", "lr", "beta2",
    "weight_decay", "average", "eval_every", "seed",
)


def model_card(args: argparse.Namespace, config: Config, corpus, best, seconds: float, sample: str) -> str:
    """Markdown; `corpus` and `best` are train.py's, `seconds` the training time, `sample` a greedy continuation."""
    parameters = sum(p.numel() for p in Gpt(config).parameters())
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "the CPU"
    rows = {
        "Parameters": f"{parameters:,} (head tied to the token embedding), stored as {config.dtype}",
        "Channels, heads, feed-forward, layers": f"{config.hidden_size}, {config.num_attention_heads}, {config.intermediate_size}, {config.num_hidden_layers}",
        "Context": f"{config.max_position_embeddings} characters",
        "Vocabulary": f"{config.vocab_size} characters: every one that the text holds, nothing else",
        "Data": f"`{corpus.name}`, sha256 `{corpus.sha256}`; first {len(corpus.train):,} characters to train, last {len(corpus.validation):,} to validate",
        "Steps": f"best of {args.steps} at step {best.step}; {args.batch} windows of {args.context} characters each",
        "Best validation loss": f"{best.loss:.4f} nats a character, over the whole validation split, on the weights as stored",
        "Seed": f"{args.seed}",
        "Made with": f"PyTorch {torch.__version__} on {device}, {seconds:.0f} s",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# {args.out.name}

A character-level GPT, trained by this repository's `reference-dump`. This card is written by the program.

| | |
|---|---|
{table}

Train it again (other hardware rounds differently, so the weights will not be equal to the bit):

```sh
{command(args, corpus.name)}
```

What it writes, greedily, after a line end:

```text
{sample.strip()}
```
"""


def command(args: argparse.Namespace, data: str) -> str:
    """The `train` command line with every option that decides the result spelled out."""
    words = ["python", "-m", "touchstone_reference", "train", "--data", data, "--out", args.out.name]
    for field in RECIPE:
        words += ["--" + field.replace("_", "-"), str(getattr(args, field))]
    if args.no_compile:
        words.append("--no-compile")
    return shlex.join(words)
