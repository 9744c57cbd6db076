"""The peer must be right before it is fast. Without a compiler: torch.compile is replaced, since it only changes speed.

    python -m pytest benches/peers
"""

import json
import re
from pathlib import Path

import pytest
import torch

import decode
import static_cache

CONFIG = {
    "vocab_size": 23, "max_position_embeddings": 16, "hidden_size": 20, "num_attention_heads": 4, "intermediate_size": 36,
    "num_hidden_layers": 2,
}
FORMULATIONS = static_cache.FORMULATIONS


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    words = ["decode.py", "--config", str(tmp_path / "config.json"), "--device", "cpu", "--new-tokens", "12", "--repeats", "2", *options]
    monkeypatch.setattr("sys.argv", words)
    return decode.main()


def test_all_modes_pass_the_gate_and_are_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    """A mode that is missing from the report looks like one that was not asked for."""
    options = ["--modes", "eager-no-cache,eager,compiled", "--formulations", ",".join(FORMULATIONS), "--dtypes", "f32,bf16"]
    assert run(tmp_path, monkeypatch, *options) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2 * (2 + len(FORMULATIONS))
    assert all(row["us_per_token_p90"] >= row["us_per_token_median"] > 0 for row in rows)
    gates = {row["gate"] for row in rows}
    assert len(gates) == 1 and re.fullmatch(r"equal for 12 tokens, ([3-9]|1\d) distinct", gates.pop())


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("prompt", [[[3]], [[3, 1, 4, 1, 5]]])
def test_static_cache_logits_are_the_models(formulation: str, prompt: list) -> None:
    """Greedy tokens of random weights may agree by luck; logits do not."""
    torch.manual_seed(2)
    model = decode.Gpt(decode.Config(**CONFIG)).eval()
    static, tokens = static_cache.StaticGpt(model, formulation), torch.tensor(prompt)
    with torch.no_grad():
        first = static(tokens, torch.arange(tokens.shape[1]))
        assert torch.allclose(first, model(tokens)[:, -1], atol=1e-5)
        more = static(torch.tensor([[9]]), torch.tensor([tokens.shape[1]]))
        assert torch.allclose(more, model(torch.cat([tokens, torch.tensor([[9]])], 1))[:, -1], atol=1e-5)


def test_the_gate_stops_a_mode_that_computes_something_else(tmp_path: Path, monkeypatch, capsys) -> None:
    """The planted fault: a cache that forgets is faster, and its figures must never appear."""
    forget = static_cache.StaticGpt._attend
    monkeypatch.setattr(static_cache.StaticGpt, "_attend", lambda self, i, x, p, visible: forget(self, i, x, p, visible & (torch.arange(16) >= p[:, None])))
    assert run(tmp_path, monkeypatch, "--modes", "compiled") == 1
    said = capsys.readouterr()
    assert said.out == "" and "wrong tokens: compiled" in said.err


def test_pick_draws_from_the_top_k_in_proportion() -> None:
    """Timed sampling that always takes the best, or looks outside the top k, would be another workload."""
    torch.manual_seed(3)
    logits = torch.tensor([[0.1, 2.0, -1.0, 1.5, 0.7]])
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[static_cache.pick(logits, 0.8, 3)] += 1
    expected = (logits[0] / 0.8).masked_fill(torch.tensor([True, False, True, False, False]), -torch.inf).softmax(0)
    assert counts[0] == counts[2] == 0
    assert torch.allclose(counts / 4000, expected, atol=0.03)
    assert static_cache.pick(logits, 0, 0).item() == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--modes", "fast"], "fast"), (["--dtypes", "f16"], "f16"), (["--formulations", "x"], "'x'"), (["--new-tokens", "16"], "context of 16"), (["--temperature", "-1"], "temperature")],
)
def test_bad_input_is_named(tmp_path: Path, monkeypatch, capsys, options: list[str], said: str) -> None:
    """An unknown word must not become the default."""
    assert run(tmp_path, monkeypatch, *options) == 2
    assert said in capsys.readouterr().err
