"""The committed models under `models/`, as the golden cases use them."""

from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import load_model, load_tokenizer
from .model import Gpt
from .tokenizer import encode
from .writer import sha256

SMALL_MODEL, LARGE_MODEL = "shakespeare-char-small", "shakespeare-char"
MODELS = Path(__file__).resolve().parents[2] / "models"
# Fixed here, because a case must not depend on a training text that may be fetched again.
TEXT = """GLOUCESTER:
Now is the winter of our discontent
Made glorious summer by this sun of York;
And all the clouds that lour'd upon our house
In the deep bosom of the ocean buried.
Now are our brows bound with victorious wreaths;
Our bruised arms hung up for monuments;
Our stern alarums changed to merry meetings,
"""


def trained_config(folder: str) -> dict:
    """The config fields that name a committed model, its weights' checksum included."""
    weights = (MODELS / folder / "model.safetensors").read_bytes()
    return {"model": folder, "model_sha256": sha256(weights)}


def load_trained(folder: str, dtype: torch.dtype) -> Gpt:
    return load_model(MODELS / folder, dtype)


def sample_tokens(folder: str, count: int) -> Tensor:
    """The first `count` tokens of `TEXT` [1, count]."""
    return prompt_tokens(folder, [TEXT[:count]])


def prompt_tokens(folder: str, prompts: list[str]) -> Tensor:
    """Prompts of one length in tokens → [B, T]."""
    tokenizer = load_tokenizer(MODELS / folder)
    return torch.tensor([encode(tokenizer, prompt) for prompt in prompts])
