"""Writes golden cases in the format of golden/README.md: one folder a case, `case.json` plus one `.npy` a tensor.

The bytes depend on nothing but the numbers: no time stamp, no path, no host name. So a regenerated case can be
compared with the committed one file by file.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FORMAT = 1
PACKAGE = Path(__file__).resolve().parent
# What every case depends on; the file of the case's own op is added to these.
SHARED_SOURCES = ("model.py", "philox.py", "recipe.py", "reproducible.py", "taps.py", "trained.py", "writer.py")
RULES = ("gate", "exact", "greedy")
# A tensor's name is also its file name: dotted words, and none that could be taken for another tensor's truth.
NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
RESERVED_ENDINGS = (".truth", ".injected")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as it lies in its file: `array` in the file's type, `dtype` as declared in `case.json`."""

    array: np.ndarray
    dtype: str


def stored(tensor: Tensor | np.ndarray) -> Stored:
    """The file form of a tensor: bf16 as float32 (exact), integers as u32, float64 as it is."""
    if isinstance(tensor, np.ndarray):
        tensor = torch.from_numpy(np.array(tensor, order="C"))
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return Stored(tensor.float().numpy(), "bf16")
    if tensor.dtype == torch.float32:
        return Stored(tensor.numpy(), "f32")
    if tensor.dtype == torch.float64:
        return Stored(tensor.numpy(), "f64")
    if tensor.dtype in (torch.int32, torch.int64, torch.uint32):
        wide = tensor.to(torch.int64).numpy()
        if wide.size and not 0 <= wide.min() <= wide.max() < 2**32:
            raise ValueError(f"values {wide.min()} to {wide.max()} do not fit u32")
        return Stored(wide.astype(np.uint32), "u32")
    raise ValueError(f"a golden case holds f32, bf16, f64 and u32, not {tensor.dtype}")


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a `.npy` file, version 1.0, C order, little endian."""
    little = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<"), copy=False)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def script_sha256(op: str) -> str:
    """One checksum over the sources that make a case of `op`, so that a stale case can be told."""
    digest = hashlib.sha256()
    for name in (*SHARED_SOURCES, f"ops/{op}.py"):
        path = PACKAGE / name
        if path.exists():
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


class CaseWriter:
    """Collects the tensors of one case; `files()` is the finished folder.

    `dtype` is the precision in which the reference computed: "f32" or "bf16".
    """

    def __init__(self, op: str, case: str, dtype: str, seed: int, config: dict) -> None:
        if dtype not in ("f32", "bf16"):
            raise ValueError(f"{op}/{case}: the reference computes in f32 or bf16, not {dtype}")
        self.op, self.case, self.dtype, self.seed, self.config = op, case, dtype, seed, config
        self._tensors: dict[str, dict] = {}
        self._files: dict[str, bytes] = {}

    def input(self, name: str, tensor: Tensor | np.ndarray) -> None:
        """What the op is given."""
        self._add(name, "input", tensor)

    def parameter(self, name: str, tensor: Tensor | np.ndarray) -> None:
        """A weight of the op, under its checkpoint name relative to the op."""
        self._add(name, "parameter", tensor)

    def output(
        self,
        name: str,
        reference: Tensor | np.ndarray,
        truth: Tensor | np.ndarray | None = None,
        rule: str | None = None,
        margins: str | None = None,
        injected: Tensor | np.ndarray | None = None,
    ) -> None:
        """What the reference answered.

        `truth`: the same in float64. `injected`: for a tap, the float64 op applied to the recorded inputs of that
        very op. `rule`: how to compare (missing: "gate"). `margins`: for "greedy", the name of the margin tensor.
        """
        rule_or_default = rule or "gate"
        if rule_or_default not in RULES:
            raise ValueError(f"{self._label(name)}: unknown rule {rule!r}")
        if rule_or_default == "gate" and truth is None:
            raise ValueError(f"{self._label(name)}: an output under the gate needs its float64 truth")
        if (rule_or_default == "greedy") != (margins is not None):
            raise ValueError(f"{self._label(name)}: rule 'greedy' and 'margins' go together")
        entry = self._add(name, "output", reference)
        if rule is not None:
            entry["rule"] = rule
        if margins is not None:
            entry["margins"] = margins
        if truth is not None:
            entry["truth"] = self._add_float64(name, "truth", entry["shape"], truth)
        if injected is not None:
            entry["injected"] = self._add_float64(name, "injected", entry["shape"], injected)

    def margin(self, name: str, array: Tensor | np.ndarray) -> None:
        """How far the winner was ahead at each step, in float64; read by the rule "greedy"."""
        self._add(name, "margin", array)

    def files(self) -> dict[str, bytes]:
        """The folder's files by name, `case.json` included."""
        for name, entry in self._tensors.items():
            margins = entry.get("margins")
            if margins is not None and self._tensors.get(margins, {}).get("role") != "margin":
                raise ValueError(f"{self._label(name)}: no margin tensor named {margins!r}")
        return {"case.json": self._manifest(), **self._files}

    def _add(self, name: str, role: str, tensor: Tensor | np.ndarray) -> dict:
        if not NAME.fullmatch(name) or name.endswith(RESERVED_ENDINGS):
            raise ValueError(f"{self._label(name)}: not a tensor name")
        if name in self._tensors:
            raise ValueError(f"{self._label(name)}: added twice")
        data = stored(tensor)
        if (data.dtype == "f64") != (role == "margin"):
            raise ValueError(f"{self._label(name)}: float64 is for truths and margins, and {role} has {data.dtype}")
        entry = {"role": role, "dtype": data.dtype, "shape": list(data.array.shape)}
        entry |= self._add_file(f"{name}.npy", data.array)
        self._tensors[name] = entry
        return entry

    def _add_float64(self, name: str, kind: str, shape: list[int], tensor: Tensor | np.ndarray) -> dict:
        data = stored(tensor)
        if data.dtype != "f64" or list(data.array.shape) != shape:
            raise ValueError(f"{self._label(name)}: {kind} is {data.dtype} {list(data.array.shape)}, not f64 {shape}")
        return self._add_file(f"{name}.{kind}.npy", data.array)

    def _add_file(self, file: str, array: np.ndarray) -> dict:
        data = npy_bytes(array)
        self._files[file] = data
        return {"file": file, "sha256": sha256(data)}

    def _label(self, name: str) -> str:
        return f"{self.op}/{self.case}: tensor {name!r}"

    def _manifest(self) -> bytes:
        """`case.json`, one line a tensor, so that a change shows as one line in a diff."""
        head = {
            "format": FORMAT, "op": self.op, "case": self.case, "dtype": self.dtype, "seed": self.seed, "config": self.config,
        }
        generator = {
            "torch": torch.__version__.split("+")[0], "numpy": np.__version__, "script_sha256": script_sha256(self.op),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        tensors = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in self._tensors.items())
        lines += ['  "tensors": {', tensors, "  },", f'  "generator": {json.dumps(generator)}']
        return ("{\n" + "\n".join(lines) + "\n}\n").encode()


def write_cases(root: Path, cases: Iterable[CaseWriter]) -> list[Path]:
    """Writes `root/<op>/<case>/` for every case and returns the folders.

    All cases are first written to a staging folder beside their place, then moved: when anything fails while
    generating, nothing has changed, and a folder never mixes files of two generations.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=root))
    try:
        staged = [_stage(staging, case) for case in cases]
        return [_replace(root / relative, staging / relative, staging / "old" / relative) for relative in staged]
    finally:
        shutil.rmtree(staging)


def _stage(staging: Path, case: CaseWriter) -> Path:
    relative = Path(case.op, case.case)
    folder = staging / relative
    folder.mkdir(parents=True)
    for name, data in case.files().items():
        (folder / name).write_bytes(data)
    return relative


def _replace(target: Path, new: Path, old: Path) -> Path:
    """Moves `new` to `target`; what stood there goes to `old`, because a rename cannot replace a full folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old.parent.mkdir(parents=True, exist_ok=True)
        os.rename(target, old)
    os.rename(new, target)
    return target
