"""Reads a case folder back, as any user of the format would: nothing here comes from the writer."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

CASES = Path(__file__).resolve().parents[2] / "golden" / "cases"


@dataclasses.dataclass(frozen=True)
class Case:
    """One case: `tensors` as recorded, `truths` and `injected` in float64, all by tensor name."""

    folder: Path
    manifest: dict
    tensors: dict[str, np.ndarray]
    truths: dict[str, np.ndarray]
    injected: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return f"{self.manifest['op']}/{self.manifest['case']}"

    @property
    def dtype(self) -> str:
        return self.manifest["dtype"]

    @property
    def config(self) -> dict:
        return self.manifest["config"]

    def outputs(self) -> list[str]:
        return [name for name, entry in self.manifest["tensors"].items() if entry["role"] == "output"]


def case_names(op: str = "*", dtype: str = "*") -> list[str]:
    """`<op>/<case>` of every committed case."""
    return sorted(str(path.parent.relative_to(CASES)) for path in CASES.glob(f"{op}/*_{dtype}/case.json"))


@functools.cache
def load(name: str) -> Case:
    folder = CASES / name
    manifest = json.loads((folder / "case.json").read_bytes())
    read = lambda entry: np.load(folder / entry["file"], allow_pickle=False)
    entries = manifest["tensors"].items()
    beside = lambda kind: {tensor: read(entry[kind]) for tensor, entry in entries if kind in entry}
    return Case(folder, manifest, {tensor: read(entry) for tensor, entry in entries}, beside("truth"), beside("injected"))
