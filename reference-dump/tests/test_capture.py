"""Capturing a module: every submodule is there, the numbers are its own, and what cannot be recorded is said."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from touchstone_reference import checkpoint
from touchstone_reference.__main__ import main
from touchstone_reference.capture import capture
from touchstone_reference.errors import BadInput
from touchstone_reference.model import Config, Gpt

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Config(23, 12, 20, 4, 36, 2)


def small_gpt() -> Gpt:
    torch.manual_seed(5)
    model = Gpt(CONFIG, dropout=0.3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def tokens() -> Tensor:
    return torch.randint(23, (3, 7), generator=torch.Generator().manual_seed(6))


def case(folder: Path) -> dict:
    return json.loads((folder / "case.json").read_text())


def load(folder: Path, file: str) -> np.ndarray:
    return np.load(folder / f"{file}.npy")


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def outputs(folder: Path) -> list[str]:
    return [name for name, entry in case(folder)["tensors"].items() if entry["role"] == "output"]


def test_every_submodule_is_recorded_under_its_path_and_op(tmp_path: Path) -> None:
    """A submodule without a case would look as if it had been checked."""
    model = small_gpt()
    capture(model, tokens(), tmp_path)
    recorded = {p.parent.name for p in tmp_path.rglob("case.json")}
    expected = {
        path or "model" for path, module in model.named_modules() if not isinstance(module, (nn.ModuleList, nn.Dropout))
    }
    assert recorded == expected
    for op, path in [
        ("linear", "blocks.1.mlp.up"), ("linear", "logits"), ("layernorm", "final_norm"), ("gelu", "blocks.0.mlp.gelu"),
        ("add", "blocks.0.add2"), ("attention", "blocks.1.attention.core"), ("self_attention", "blocks.0.attention"),
        ("mlp", "blocks.0.mlp"), ("block", "blocks.1"), ("embedding", "embedding"), ("embedding", "embedding.token"), ("gpt", "model"),
    ]:
        assert (tmp_path / op / path / "case.json").exists(), (op, path)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_case_is_the_submodule_on_its_own_inputs(tmp_path: Path, dtype: str) -> None:
    """A truth computed from float64 *inputs* would charge each submodule with the errors of those before it."""
    model = small_gpt()
    capture(model, tokens(), tmp_path, dtype=dtype)
    folder = tmp_path / "linear" / "blocks.1.mlp.down"
    assert case(folder)["dtype"] == dtype
    x, weight, bias = (load(folder, name) for name in ("x", "weight", "bias"))
    stored = model.blocks[1].mlp.down.weight.detach()
    assert np.array_equal(weight, stored.to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype]).float().numpy())
    truth = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    assert np.abs(load(folder, "y.truth") - truth).max() < 1e-12
    error = np.abs(load(folder, "y") - truth).max()
    assert 0 < error < {"f32": 1e-4, "bf16": 1e-1}[dtype]


def test_the_whole_model_has_every_tap_with_both_truths(tmp_path: Path) -> None:
    """Without the taps a wrong model shows only as wrong logits."""
    model = small_gpt()
    capture(model, tokens(), tmp_path)
    folder = tmp_path / "gpt" / "model"
    inner = "ln1 attention.q attention.k attention.v attention.core attention.out add1 ln2 mlp.up mlp.gelu mlp.down add2".split()
    assert outputs(folder) == ["embedding", *(f"blocks.{i}.{tap}" for i in range(2) for tap in inner), "final_norm", "logits"]
    with torch.no_grad():
        double = model.eval().double()(tokens()).numpy()
    assert np.abs(load(folder, "logits.truth") - double).max() < 1e-12
    assert np.array_equal(load(folder, "final_norm.injected"), load(tmp_path / "layernorm" / "final_norm", "y.truth"))
    assert not np.array_equal(load(folder, "final_norm.injected"), load(folder, "final_norm.truth"))


def test_a_changed_module_changes_its_files_and_no_earlier_ones(tmp_path: Path) -> None:
    """The planted fault: a capture that did not see it could not see anything."""
    model = small_gpt()
    capture(model, tokens(), tmp_path / "good")
    capture(model, tokens(), tmp_path / "again")
    assert files(tmp_path / "good") == files(tmp_path / "again")
    model.blocks[1].mlp.gelu = nn.GELU(approximate="tanh")
    capture(model, tokens(), tmp_path / "bad")
    good, bad = files(tmp_path / "good"), files(tmp_path / "bad")
    # The tanh form is another function: it must not pass as the op `gelu`.
    assert "gelu/blocks.1.mlp.gelu/case.json" in good and "GELU/blocks.1.mlp.gelu/case.json" in bad
    changed = {name.split("/")[1] for name in good.keys() & bad.keys() if good[name] != bad[name]}
    assert {"blocks.1.mlp", "blocks.1.mlp.down", "blocks.1", "final_norm", "logits", "model"} <= changed
    assert not {path for path in changed if path.startswith(("blocks.0", "embedding", "blocks.1.attention", "blocks.1.ln"))}


class Awkward(nn.Module):
    """Everything a capture must cope with: one submodule called twice, nested results, odd arguments, an unused submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.unused, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(0.5)
        self.wide_norm = nn.LayerNorm((2, 6))
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x: Tensor, pair: tuple, mask: Tensor | None = None, *, power: int = 1, thing: object = None) -> dict:
        y = self.wide_norm(self.drop(self.twice(self.twice(x)))) * self.scale**power
        return {"sum": y + pair[1], "parts": (y.masked_fill(mask, 0.0), mask)}


def awkward_inputs() -> dict:
    x = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(8))
    return {"x": x, "pair": (x + 1, x * 2), "mask": x > 0, "power": 3, "thing": object()}


def test_repeated_calls_nested_values_and_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Overwriting the first call with the second, or dropping an argument in silence, would leave a case that cannot be replayed."""
    torch.manual_seed(9)
    module = Awkward().train()
    report = capture(module, awkward_inputs(), tmp_path)
    assert module.training and module.drop.training
    first, second = (tmp_path / "linear" / f"twice.call{i}" for i in (0, 1))
    assert np.array_equal(load(first, "y"), load(second, "x")) and not np.array_equal(load(first, "x"), load(second, "x"))
    whole = tmp_path / "Awkward" / "model"
    manifest = case(whole)
    assert manifest["config"] == {"power": 3}
    roles = {name: entry["role"] for name, entry in manifest["tensors"].items()}
    assert {name for name, role in roles.items() if role == "input"} == {"x", "pair.0", "pair.1", "mask"}
    assert roles["scale"] == "parameter" and roles["unused.weight"] == "parameter"
    assert outputs(whole) == ["y.sum", "y.parts.0", "y.parts.1", "twice.call0", "twice.call1", "wide_norm"]
    assert manifest["tensors"]["y.parts.1"]["rule"] == "exact"
    assert (tmp_path / "LayerNorm" / "wide_norm").is_dir()
    said = capsys.readouterr().err
    assert "argument 'thing' is a object" in said and "unused: Linear was never called" in said
    assert report.unmapped == {"Awkward": 1, "LayerNorm": 1} and "not checked: Awkward, LayerNorm" in said


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Casting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


class Remembering(nn.Module):
    """Scales by the number of the call."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


@pytest.mark.parametrize(("bad", "said"), [(Noisy(), "is random"), (Casting(), "casts inside")])
def test_a_module_without_a_truth_is_refused_by_name(tmp_path: Path, bad: nn.Module, said: str) -> None:
    """A golden value that the module itself would not repeat is worse than none."""
    torch.manual_seed(1)
    report = capture(nn.Sequential(nn.Linear(4, 4), bad), torch.randn(5, 4), tmp_path)
    assert any(note.startswith("1: ") and said in note for note in report.notes)
    assert report.cases == {"linear": 1} and not (tmp_path / type(bad).__name__).exists()


def test_state_left_by_an_earlier_call_is_noticed(tmp_path: Path) -> None:
    """The second call of a stateful module is replayed from another state."""
    remembering = Remembering()
    report = capture(nn.Sequential(remembering, nn.Linear(3, 3), remembering), torch.randn(2, 3), tmp_path)
    assert any("keeps state" in note for note in report.notes)
    assert remembering.count == 0


@pytest.mark.parametrize("module", [nn.Linear(3, 3).half(), nn.Linear(3, 3).double(), nn.Flatten()])
def test_other_precisions_are_refused(tmp_path: Path, module: nn.Module) -> None:
    """The format knows f32 and bf16; a float64 run would be its own truth."""
    dtype = next((p.dtype for p in module.parameters()), torch.int64)
    with pytest.raises(BadInput, match="f32 or bf16"):
        capture(module, torch.ones(2, 3).to(dtype), tmp_path)


def test_the_worked_example_runs_from_the_command_line(tmp_path: Path) -> None:
    """It is what a newcomer types first."""
    command = [sys.executable, "-m", "touchstone_reference", "capture", "--out", str(tmp_path)]
    factory = ["--factory", "capture_your_model:tiny_classifier"]
    done = subprocess.run(
        [*command, *factory], cwd=ROOT / "examples", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "9 cases" in done.stderr
    assert (tmp_path / "linear" / "mlp.2" / "case.json").exists()


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("capture_your_model", "expected PACKAGE.MODULE:FUNCTION"),
        ("no_such_module:f", "no_such_module"),
        ("capture_your_model:nothing", "nothing"),
        ("capture_your_model:MeanPool", "expected a pair"),
    ],
)
def test_a_bad_factory_is_named(tmp_path: Path, monkeypatch, capsys, factory: str, said: str) -> None:
    """A typing error must not look like a failure of the capture."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    assert main(["capture", "--factory", factory, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_pattern_selects_and_one_that_selects_nothing_fails(tmp_path: Path) -> None:
    """A filter that matches nothing would otherwise pass every check after it."""
    capture(small_gpt(), tokens(), tmp_path, only="blocks.0.mlp*")
    assert {p.parent.name for p in tmp_path.rglob("case.json")} == {f"blocks.0.mlp{end}" for end in ("", ".up", ".gelu", ".down")}
    with pytest.raises(BadInput, match="blocks.7"):
        capture(small_gpt(), tokens(), tmp_path, only="blocks.7*")


def test_a_trained_model_folder_captures(tmp_path: Path) -> None:
    """Real weights reach magnitudes that random ones do not."""
    model = checkpoint.load_model(ROOT.parent / "models" / "shakespeare-char")
    report = capture(model, torch.randint(65, (1, 5)), tmp_path, only="blocks.3*")
    assert report.notes == [] and report.cases.total() == 15
