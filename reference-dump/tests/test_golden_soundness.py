"""The gate on the committed cases: a correct answer passes every one of them, though it is computed another way."""

import numpy as np
import pytest

from golden_other_way import compute, widened
from golden_reading import case_names, load
from touchstone_reference.gate import judge

MODULES = ("self_attention", "mlp", "block")
OPS = ("embedding", "layernorm", "linear", "gelu", "add", "attention", *MODULES, "gpt")
COMPUTED = [name for op in OPS for name in case_names(op) if "lookup" not in name]
# What the project asks of its own float64 backend.
ORACLE_NMSE_MAX = 1e-24


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("inject", [True, False], ids=["injected", "free"])
def test_a_correct_answer_passes(name: str, inject: bool) -> None:
    """Without this, a case could be so hard or so degenerate that it rejects sound kernels."""
    case = load(name)
    ours = compute(case, inject=inject)
    failures = []
    for output in case.outputs():
        truth = case.injected.get(output, case.truths[output]) if inject else case.truths[output]
        verdict = judge(ours[output], case.tensors[output], truth, case.dtype)
        if not verdict.passed:
            failures.append(f"{output}: {verdict}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("inject", [True, False], ids=["injected", "free"])
def test_the_truth_is_the_truth(name: str, inject: bool) -> None:
    """The float64 computation agrees to rounding; a truth made in float32 by mistake would blunt the gate unseen."""
    case = load(name)
    ours = compute(widened(case), inject=inject)
    for output in case.outputs():
        truth = case.injected.get(output, case.truths[output]) if inject else case.truths[output]
        assert truth.dtype == np.float64
        nmse = np.square(ours[output] - truth).sum() / np.square(truth).sum()
        assert nmse <= ORACLE_NMSE_MAX, f"{output}: NMSE {nmse:.1e}"


@pytest.mark.parametrize("name", [name for op in MODULES for name in case_names(op)])
def test_module_taps_are_complete(name: str) -> None:
    """Every tap of a module case can be judged on golden inputs."""
    case = load(name)
    assert set(case.injected) == set(case.outputs()) == set(compute(case))
