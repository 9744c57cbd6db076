"""Makes the CPU's arithmetic repeatable: the same bits on every x86 CPU with AVX2, Intel or AMD, in every run.

Import this before anything computes with torch: the libraries read these settings at their first operation.
"""

import os

# torch picks its vector width by CPU; sums of another width round differently. AVX2 is everywhere.
os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
# MKL does the f32 and f64 products. Its AVX2 branch is promised to Intel CPUs alone, COMPATIBLE to all.
os.environ["MKL_CBWR"] = "COMPATIBLE"

import torch  # noqa: E402  (after the settings it reads)

from .errors import BadInput  # noqa: E402


def require() -> None:
    """One thread, deterministic kernels, no oneDNN; raises `BadInput` where the vector width could not be fixed."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # oneDNN computes bf16 products with whatever the CPU has (AMX, avx512_bf16), each with its own summation
    # order. torch's own kernels sum in f32 and round once, on every CPU alike.
    torch.backends.mkldnn.enabled = False
    torch.set_flush_denormal(False)
    found = torch.backends.cpu.get_cpu_capability()
    if found != "AVX2":
        raise BadInput(
            f"golden cases are computed with AVX2, torch chose {found}: it had computed before the settings were "
            "made, or this CPU lacks AVX2"
        )
