"""`golden`: makes every golden case anew from its fixed seed; with `--check`, compares with the committed ones."""

import argparse
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .ops import NAMES

if TYPE_CHECKING:
    from .writer import CaseWriter

CASES = Path(__file__).resolve().parents[2] / "golden" / "cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Cheap: torch is first imported in `run`, after the settings that make it reproducible."""
    parser.add_argument("--out", type=Path, default=CASES, metavar="DIR", help="the folder of cases (default: golden/cases)")
    parser.add_argument("--check", action="store_true", help="write nothing; report what differs from DIR, exit code 1 if anything does")
    parser.add_argument("--only", choices=NAMES, metavar="OP", help=f"one op alone: {', '.join(NAMES)}")


def run(args: argparse.Namespace) -> int:
    """Exit codes: 0 written, or nothing differs; 1 something differs."""
    from . import reproducible

    reproducible.require()
    ops = [args.only] if args.only else list(NAMES)
    if args.check:
        return check(args.out, ops)
    from .writer import write_cases

    folders = write_cases(args.out, generate(ops))
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    print(f"{len(folders)} cases, {size / 1e6:.2f} MB in {args.out}", file=sys.stderr)
    surplus = find_surplus(args.out, ops, {folder.relative_to(args.out) for folder in folders})
    for folder in surplus:
        print(f"surplus: {folder} is made by no op", file=sys.stderr)
    return 1 if surplus else 0


def generate(ops: list[str]) -> Iterator["CaseWriter"]:
    """The cases of the ops, each computed when it is asked for."""
    for op in ops:
        yield from importlib.import_module(f".ops.{op}", __package__).cases()


def check(root: Path, ops: list[str]) -> int:
    """Compares `root` with a fresh generation, byte for byte; one line on stdout for every difference."""
    differences, made = [], set()
    for case in generate(ops):
        made.add(Path(case.op, case.case))
        differences += compare_case(root, Path(case.op, case.case), case.files())
    differences += [f"{folder}: surplus folder" for folder in find_surplus(root, ops, made)]
    for line in differences:
        print(line)
    print(f"{len(made)} cases, {len(differences)} differences", file=sys.stderr)
    return 1 if differences else 0


def find_surplus(root: Path, ops: list[str], made: set[Path]) -> list[Path]:
    """Case folders of the ops that no generation makes; with all ops, folders of unknown ops, too."""
    names = set(ops) if len(ops) < len(NAMES) else {folder.name for folder in root.iterdir() if folder.is_dir()}
    found = {folder.relative_to(root) for name in names for folder in (root / name).glob("*")}
    return sorted(found - made)


def compare_case(root: Path, case: Path, new: dict[str, bytes]) -> list[str]:
    """What differs between the folder `root/case` and the files `new`."""
    folder = root / case
    if not folder.is_dir():
        return [f"{case}: missing folder"]
    old = {file.name: file.read_bytes() for file in folder.iterdir()}
    lines = [f"{case}/{name}: missing file" for name in sorted(new.keys() - old.keys())]
    lines += [f"{case}/{name}: surplus file" for name in sorted(old.keys() - new.keys())]
    for name in sorted(new.keys() & old.keys()):
        if old[name] != new[name]:
            detail = describe_manifest(old[name], new[name]) if name == "case.json" else describe_tensor(name, old, new)
            lines.append(f"{case}/{name}: {detail}")
    return lines


def describe_manifest(old: bytes, new: bytes) -> str:
    """The fields of `case.json` that differ; checksums are left to the files that they belong to."""
    try:
        before, after = json.loads(old), json.loads(new)
    except ValueError as error:
        return f"not JSON: {error}"
    changed = [key for key in before.keys() | after.keys() if key != "generator" and before.get(key) != after.get(key)]
    generators = before.get("generator", {}), after.get("generator", {})
    changed += [f"generator.{key}" for key in generators[1] if generators[0].get(key) != generators[1][key]]
    return f"differs in {', '.join(sorted(changed)) or 'layout'}"


def describe_tensor(name: str, old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """How far the new values are from the old: as errors where a truth stands beside them, else relative to the values."""
    import numpy as np

    from .gate import rms

    load = lambda data: np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    try:
        before, after = load(old[name]), load(new[name])
    except ValueError as error:
        return f"unreadable: {error}"
    if before.shape != after.shape:
        return f"shape {list(before.shape)}, now {list(after.shape)}"
    truth = name.removesuffix(".npy") + ".truth.npy"
    if truth in old and truth in new and load(old[truth]).shape == before.shape:
        errors = rms(before - load(old[truth])), rms(after - load(new[truth]))
        return f"error {errors[0]:.3e}, now {errors[1]:.3e} (ratio {errors[1] / errors[0] if errors[0] else float('inf'):.3f})"
    scale = rms(before)
    return f"differs by {rms(after - before) / scale if scale else float('inf'):.3e} of its rms"
