"""Training on a small text: what is exported loads, is what was measured, and is refused where the input is bad."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from touchstone_reference import checkpoint, train
from touchstone_reference.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
# Long enough that both splits hold several windows of the tiny model; not all of it is ASCII.
TEXT = "Die Brücke über den Fluß — naß und schön.\nTwo  spaces, and a line end.\n" * 40
TINY = "--channels 16 --heads 2 --ff 24 --layers 2 --context 16 --batch 4 --steps 30 --warmup 5 --eval-every 10 --device cpu".split()


def tiny_run(folder: Path, *options: str) -> Path:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    out = folder / "model"
    assert main(["train", "--data", str(text), "--out", str(out), *TINY, *options]) == 0
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_folder_loads_and_has_the_loss_on_its_card(tmp_path: Path, dtype: str) -> None:
    """Without it, a card could show the loss of other weights than those in the file (unrounded, or of the last step)."""
    out = tiny_run(tmp_path, "--dtype", dtype, "--log", str(tmp_path / "log"))
    model = checkpoint.load_model(out)
    assert {p.dtype for p in model.parameters()} == {checkpoint.DTYPES[dtype]}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    corpus = train.read_corpus(tmp_path / "text.txt", 16, "cpu")
    loss = train.split_loss(model.float(), corpus.validation)
    logged = [json.loads(line)["val_loss"] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(logged) == 3 and loss == pytest.approx(min(logged), abs=1e-6)
    assert f"| {loss:.4f} nats" in (out / "README.md").read_text(encoding="utf-8")
    assert loss < train.split_loss(train.initial_model(model.config, 0.0).eval(), corpus.validation)


def test_fused_training_attention_is_the_reference_attention() -> None:
    """The model is trained with another attention than it is checked with: a difference would make the export another model."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 20)
    fused, reference = train.TrainingAttention(4, dropout=0.0), train.CausalAttention(4)
    assert torch.allclose(fused(q, k, v), reference(q, k, v), atol=1e-6)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    """A card's command must make the same model again on the same machine, and another seed another one."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, two, other = (
        (tiny_run(folder, "--seed", seed) / "model.safetensors").read_bytes() for folder, seed in zip(folders, ("3", "3", "4"))
    )
    assert one == two != other


def test_split_loss_covers_the_whole_split() -> None:
    """The last window is shorter than the context; dropping it would change the mean."""
    torch.manual_seed(1)
    model = train.initial_model(train.Config(11, 8, 12, 2, 20, 1), 0.0).eval()
    torch.nn.init.normal_(model.embedding.token.weight)
    tokens = torch.randint(11, (30,))
    expected = []
    for start in range(0, 29, 8):
        x, y = tokens[start : min(start + 8, 29)], tokens[start + 1 : start + 9]
        expected += torch.nn.functional.cross_entropy(model(x[None])[0], y, reduction="none").tolist()
    assert len(expected) == 29
    assert train.split_loss(model, tokens, batch=2) == pytest.approx(sum(expected) / 29, rel=1e-5)


def test_an_existing_model_is_not_replaced_unasked(tmp_path: Path) -> None:
    """Hours of training must not be lost to a repeated command line."""
    out = tiny_run(tmp_path)
    before = (out / "model.safetensors").read_bytes()
    arguments = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(out), *TINY, "--seed", "9"]
    assert main(arguments) == 2
    assert (out / "model.safetensors").read_bytes() == before
    assert main([*arguments, "--force"]) == 0
    assert (out / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "missing.txt"], "missing.txt"),
        (["--data", "short.txt"], "longer than the context"),
        (["--data", "latin1.txt"], "latin1.txt"),
        (["--data", "short.txt", "--heads", "3"], "--heads 3"),
        (["--data", "short.txt", "--dropout", "1.5"], "--dropout is 1.5"),
    ],
)
def test_bad_input_is_named_in_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    """A user's mistake ends with exit code 2 and says what to change; a traceback would hide it."""
    (tmp_path / "short.txt").write_text("to be or not")
    (tmp_path / "latin1.txt").write_bytes(b"na\xefve " * 100)
    command = [sys.executable, "-m", "touchstone_reference", "train", "--out", "out", *TINY, *options]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
