"""The prefill peer must be right before it is fast: `python -m pytest benches/peers`."""

import json
from pathlib import Path

import pytest
import torch

import decode
import prefill

CONFIG = {
    "vocab_size": 23, "max_position_embeddings": 16, "hidden_size": 20, "num_attention_heads": 4, "intermediate_size": 36,
    "num_hidden_layers": 2,
}


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    words = ["prefill.py", "--config", str(tmp_path / "config.json"), "--device", "cpu", "--repeats", "2", *options]
    monkeypatch.setattr("sys.argv", words)
    return prefill.main()


def test_every_length_is_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    """A length that is missing from the report looks like one that was not asked for."""
    assert run(tmp_path, monkeypatch, "--lengths", "3,16") == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["mode"], row["tokens"]) for row in report["rows"]] == [("eager", 3), ("eager", 16)]
    assert all(row["us_p90"] >= row["us_median"] > 0 for row in report["rows"])
    assert report["matrix_flop_per_s"] is None


def test_logits_are_the_models() -> None:
    """Logits of the last position alone, as ours keeps them: those of another would be timed for nothing."""
    torch.manual_seed(2)
    model = decode.Gpt(decode.Config(**CONFIG)).eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.allclose(prefill.last_logits(model, tokens), model(tokens)[:, -1], atol=1e-5)


def test_a_pass_that_computes_something_else_is_refused() -> None:
    """The planted fault: a graph that replays stale buffers is as fast as a right one."""
    logits = torch.tensor([[1.0, -3.0, 2.0]])
    prefill.check(logits, logits + 1e-3, 3)
    for wrong in (logits.flip(-1), logits * torch.nan):
        with pytest.raises(decode.WrongTokens, match="graph, 3 tokens"):
            prefill.check(logits, wrong, 3)


@pytest.mark.parametrize(("options", "said"), [(["--lengths", "17"], "17"), (["--lengths", "0"], "0"), (["--lengths", "x"], "'x'")])
def test_bad_input_is_named(tmp_path: Path, monkeypatch, capsys, options: list[str], said: str) -> None:
    """A length over the context would be timed as another."""
    assert run(tmp_path, monkeypatch, *options) == 2
    assert said in capsys.readouterr().err
