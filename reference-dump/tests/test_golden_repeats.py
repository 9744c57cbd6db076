"""A generation repeats to the bit, and `golden --check` tells every way in which a folder can differ from one."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from touchstone_reference import golden, reproducible
from touchstone_reference.ops import NAMES
from touchstone_reference.writer import npy_bytes

# The version of NumPy goes into `case.json`; the numbers must not depend on it.
VERSION_ONLY = "differs in generator.numpy"


@pytest.fixture(autouse=True)
def fixed_arithmetic() -> None:
    reproducible.require()


@pytest.mark.parametrize("op", NAMES)
def test_the_committed_cases_are_what_the_generator_makes(op: str) -> None:
    """A case edited by hand, or a generator changed without its cases, is a golden value that nobody computed."""
    made = {Path(case.op, case.case): case.files() for case in golden.generate([op])}
    differences = [line for case, files in made.items() for line in golden.compare_case(golden.CASES, case, files)]
    assert [line for line in differences if not line.endswith(VERSION_ONLY)] == []
    assert golden.find_surplus(golden.CASES, [op], set(made)) == []


@pytest.mark.parametrize("op", [op for op in NAMES if op != "generate"])
def test_two_generations_give_the_same_bytes(op: str) -> None:
    once, again = ([case.files() for case in golden.generate([op])] for _ in range(2))
    assert once == again


@pytest.fixture
def written(tmp_path: Path) -> Path:
    assert golden.run(arguments(tmp_path)) == 0
    return tmp_path


def arguments(root: Path, check: bool = False) -> argparse.Namespace:
    return argparse.Namespace(out=root, check=check, only="add")


def test_check_passes_what_was_just_written(written: Path, capsys: pytest.CaptureFixture) -> None:
    assert golden.run(arguments(written, check=True)) == 0
    assert capsys.readouterr().out == ""


def change_value(folder: Path) -> None:
    y = np.load(folder / "y.npy")
    y[0, 0, 0] += np.float32(0.5)
    (folder / "y.npy").write_bytes(npy_bytes(y))


def change_input(folder: Path) -> None:
    a = np.load(folder / "a.npy")
    (folder / "a.npy").write_bytes(npy_bytes(a * np.float32(2)))


def change_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "case.json").read_bytes())
    (folder / "case.json").write_text(json.dumps(manifest | {"seed": 1}))


@pytest.mark.parametrize(
    ("change", "report"),
    [
        (change_value, "add/odd_f32/y.npy: error "),
        (change_input, "add/odd_f32/a.npy: differs by 5.000e-01 of its rms"),
        (change_manifest, "add/odd_f32/case.json: differs in seed"),
        (lambda folder: (folder / "b.npy").unlink(), "add/odd_f32/b.npy: missing file"),
        (lambda folder: (folder / "c.npy").write_bytes(b""), "add/odd_f32/c.npy: surplus file"),
        (lambda folder: (folder / "a.npy").write_bytes(b"no array"), "add/odd_f32/a.npy: unreadable"),
        (lambda folder: (folder / "a.npy").write_bytes(npy_bytes(np.ones(3))), "add/odd_f32/a.npy: shape [3], now [2, 9, 33]"),
        (shutil.rmtree, "add/odd_f32: missing folder"),
        (lambda folder: shutil.copytree(folder, folder.parent / "more_f32"), "add/more_f32: surplus folder"),
    ],
)
def test_check_reports(change: object, report: str, written: Path, capsys: pytest.CaptureFixture) -> None:
    change(written / "add/odd_f32")
    assert golden.run(arguments(written, check=True)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(report)
