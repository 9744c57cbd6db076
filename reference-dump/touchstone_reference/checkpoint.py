"""Model folders: `config.json`, `model.safetensors`, `tokenizer.json` and a card, in Hugging Face's layout."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from .errors import BadInput
from .model import Config, Gpt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save(folder: Path, config: Config, weights: dict[str, Tensor], tokenizer: Tokenizer, card: str) -> None:
    """Writes a model folder. The files are complete before the first one takes its place; the weights come last."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[config.dtype]
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        partial = Path(partial)
        (partial / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
        (partial / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")
        # torch's own save_file writes with mode 0600 on some systems; bytes through pathlib follow the umask.
        (partial / "model.safetensors").write_bytes(safetensors.torch.save(stored, metadata={"format": "pt"}))
        for name in ("config.json", "tokenizer.json", "README.md", "model.safetensors"):
            os.replace(partial / name, folder / name)


def load_config(folder: Path) -> Config:
    """The `Config` of a model folder; an unknown, missing or wrong field is an error that names it."""
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from error
    try:
        config = Config(**fields)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from error
    if config.dtype not in DTYPES:
        raise BadInput(f"{path}: dtype is {config.dtype!r}, expected one of {sorted(DTYPES)}")
    return config


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Gpt:
    """The model of a folder in evaluation mode, on the CPU, in `dtype` (default: the one it is stored in)."""
    config = load_config(folder)
    path = folder / "model.safetensors"
    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: {error}") from error
    model = Gpt(config).to(dtype or DTYPES[config.dtype])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(f"{path}: {error}") from error
    return model.eval()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise BadInput(f"{path}: {error}") from error
