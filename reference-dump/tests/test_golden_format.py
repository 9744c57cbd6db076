"""Every committed case keeps to golden/README.md, checked without the writer."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from golden_reading import CASES, case_names, load
from touchstone_reference.ops import NAMES
from touchstone_reference.writer import CaseWriter, write_cases

FIELDS = {"format", "op", "case", "dtype", "seed", "config", "tensors", "generator"}
STORED_AS = {"f32": np.float32, "bf16": np.float32, "u32": np.uint32, "f64": np.float64}
# Clones and downloads stay small.
TOTAL_BYTES_MAX = 13_000_000


def test_every_op_has_cases_in_both_precisions() -> None:
    """An op whose folder vanished would be tested by nothing, and all would be green."""
    for op in NAMES:
        assert case_names(op, "f32"), op
        assert case_names(op, "bf16") or op == "generate", op


def test_nothing_else_lies_among_the_cases() -> None:
    folders = {str(path.relative_to(CASES)) for path in CASES.glob("*/*")}
    assert folders == set(case_names())
    assert sum(file.stat().st_size for file in CASES.glob("*/*/*")) <= TOTAL_BYTES_MAX


@pytest.mark.parametrize("name", case_names())
def test_the_folder_is_what_the_manifest_says(name: str) -> None:
    case = load(name)
    manifest = case.manifest
    assert set(manifest) == FIELDS and manifest["format"] == 1
    assert f"{manifest['op']}/{manifest['case']}" == name
    assert name.endswith(f"_{manifest['dtype']}")
    files = {"case.json"}
    for tensor, entry in manifest["tensors"].items():
        assert entry["role"] in ("input", "parameter", "output", "margin")
        assert (entry["dtype"] == "f64") == (entry["role"] == "margin")
        assert ("truth" in entry) == (entry["role"] == "output" and entry.get("rule", "gate") == "gate")
        assert entry.get("rule") != "greedy" or manifest["tensors"][entry["margins"]]["role"] == "margin"
        check_file(case.folder, entry, entry["shape"], STORED_AS[entry["dtype"]])
        files.add(entry["file"])
        for kind in {"truth", "injected"} & entry.keys():
            check_file(case.folder, entry[kind], entry["shape"], np.float64)
            files.add(entry[kind]["file"])
        if entry["dtype"] == "bf16":
            assert not (case.tensors[tensor].view(np.uint32) & 0xFFFF).any(), f"{tensor} is no bf16"
    assert {file.name for file in case.folder.iterdir()} == files


def check_file(folder: Path, entry: dict, shape: list[int], kind: type) -> None:
    """Checksum, `.npy` version 1.0, C order, little endian, finite but for what is masked."""
    data = (folder / entry["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert b"'fortran_order': False" in data[:128]
    array = np.load(folder / entry["file"], allow_pickle=False)
    assert array.dtype == np.dtype(kind).newbyteorder("<") and list(array.shape) == shape
    # Masked logits are minus infinity; nothing else is.
    masked = np.isneginf(array) if "masked" in folder.name and entry.get("role") == "input" else False
    assert (np.isfinite(array) | masked).all()


def a_case(name: str = "plain_f32") -> CaseWriter:
    writer = CaseWriter("add", name, "f32", 3, {})
    writer.input("a", np.ones((2, 3), dtype=np.float32))
    writer.output("y", np.ones((2, 3), dtype=np.float32), truth=np.ones((2, 3)))
    return writer


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda w: w.output("z", np.ones(2, dtype=np.float32)), "needs its float64 truth"),
        (lambda w: w.output("z", np.ones(2, dtype=np.float32), truth=np.ones(3)), "not f64"),
        (lambda w: w.output("z", np.ones(2, dtype=np.float32), truth=np.ones(2, dtype=np.float32)), "not f64"),
        (lambda w: w.output("z", np.ones(2, dtype=np.int64), rule="greedy"), "go together"),
        (lambda w: w.output("z", np.ones(2, dtype=np.int64), rule="fuzzy"), "unknown rule"),
        (lambda w: w.input("a", np.ones(2, dtype=np.float32)), "added twice"),
        (lambda w: w.input("../a", np.ones(2, dtype=np.float32)), "not a tensor name"),
        (lambda w: w.input("y.truth", np.ones(2, dtype=np.float32)), "not a tensor name"),
        (lambda w: w.input("z", np.ones(2)), "float64 is for truths"),
        (lambda w: w.input("z", np.array([-1])), "do not fit u32"),
        (lambda w: w.input("z", np.ones(2, dtype=np.float16)), "not torch.float16"),
    ],
)
def test_the_writer_refuses(add: object, message: str) -> None:
    """What no reader could use must not come into being."""
    with pytest.raises(ValueError, match=message):
        add(a_case())


def test_a_greedy_output_names_a_margin_that_is_there() -> None:
    writer = a_case()
    writer.output("tokens", np.array([1]), rule="greedy", margins="lead")
    with pytest.raises(ValueError, match="no margin tensor named 'lead'"):
        writer.files()


def test_a_failing_generation_changes_nothing(tmp_path: Path) -> None:
    """Not even the cases that were ready before the failure."""

    def failing() -> object:
        yield a_case("new_f32")
        raise RuntimeError("out of numbers")

    write_cases(tmp_path, [a_case()])
    before = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(RuntimeError):
        write_cases(tmp_path, failing())
    assert {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["add"]


def test_a_rewritten_case_keeps_no_old_file(tmp_path: Path) -> None:
    write_cases(tmp_path, [a_case()])
    (tmp_path / "add/plain_f32/left_over.npy").write_bytes(b"")
    write_cases(tmp_path, [a_case()])
    assert sorted(file.name for file in (tmp_path / "add/plain_f32").iterdir()) == ["a.npy", "case.json", "y.npy", "y.truth.npy"]
    json.loads((tmp_path / "add/plain_f32/case.json").read_bytes())
