"""Which precision ``auto`` stands for: bfloat16 where the hardware multiplies it, fp32 where it would be emulated."""

from __future__ import annotations

import platform
from typing import Literal

Dtype = Literal["auto", "bf16", "fp32"]
StoredDtype = Literal["bf16", "fp32"]


def resolve_dtype(dtype: Dtype) -> StoredDtype:
    """``dtype`` itself, or for ``auto`` what is fast on this process's device."""
    if dtype != "auto":
        return dtype
    return "bf16" if multiplies_bfloat16() else "fp32"


def multiplies_bfloat16() -> bool:
    """True where the GPU, or without one the CPU, has instructions for products of bfloat16 matrices.

    A CPU without them takes several times as long as in fp32: 7 against 40 GFLOP/s on a core of an EPYC 7003.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    if platform.machine().lower() in ("x86_64", "amd64"):
        tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(test() for test in tests if test is not None)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False
