"""What this machine and its runtimes can do: instruction sets, versions, and which operators of a file really run in int8."""

import collections
import importlib.metadata
import os
import pathlib
import platform
import tempfile
from dataclasses import dataclass

from paredown.core.target import Target

_CPUINFO = pathlib.Path("/proc/cpuinfo")
_INSTRUCTION_SETS = {
    "sse4_2": "SSE4.2", "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX512F", "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI", "avx512_bf16": "AVX512-BF16", "amx_int8": "AMX-INT8", "amx_bf16": "AMX-BF16",
    "asimd": "NEON", "asimddp": "NEON-DOTPROD", "i8mm": "I8MM", "sve": "SVE",
}  # fmt: skip
_PREFIXES = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize", "Nhwc")
_LAYOUT = ("QuantizeLinear", "DequantizeLinear")


def has_vnni() -> bool:
    """Whether 8-bit products are summed in 32 bits (AVX512-VNNI or AVX-VNNI), so that a full weight range can't saturate.

    Read from /proc/cpuinfo; False where that can't be read, which is the safe answer.
    """
    return bool({"avx512_vnni", "avx_vnni"} & _flags())


def environment(target: Target) -> dict[str, str]:
    """Machine and versions as they stand in a report. No host name, no user, no paths."""
    found = {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count() or 1),
        "instruction sets": ", ".join(label for flag, label in _INSTRUCTION_SETS.items() if flag in _flags()) or "unknown",
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in ("paredown", "torch", "onnx", "onnxscript", "onnxruntime", "openvino"):
        version = _version(package)
        if version is not None:
            found[package] = version
    return found | {"target": str(target), "threads": str(target.threads)}


@dataclass(frozen=True)
class Int8Operators:
    """Operators of a file after ONNX Runtime's own optimization, {type: how many}.

    int8: run on integers. floating: the others that compute. quantize, dequantize: conversions that were left.
    """

    int8: dict[str, int]
    floating: dict[str, int]
    quantize: int
    dequantize: int


def int8_operators(path: str | pathlib.Path) -> Int8Operators:
    """What ONNX Runtime makes of a file. Raises ArtifactError where it can't be loaded."""
    import onnx
    import onnxruntime

    from paredown.deploy.onnxruntime import options
    from paredown.deploy.ports import unreadable

    chosen = options(Target(threads=1))
    with tempfile.TemporaryDirectory() as folder:
        optimized = pathlib.Path(folder) / "optimized.onnx"
        chosen.optimized_model_filepath = str(optimized)
        try:
            onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes derive from Exception alone
            raise unreadable(pathlib.Path(path), error) from error
        nodes = onnx.load(str(optimized)).graph.node
    counts = collections.Counter(node.op_type for node in nodes)
    return Int8Operators(
        int8={kind: n for kind, n in sorted(counts.items()) if kind.startswith(_PREFIXES)},
        floating={kind: n for kind, n in sorted(counts.items()) if not kind.startswith(_PREFIXES) and kind not in _LAYOUT},
        quantize=counts["QuantizeLinear"],
        dequantize=counts["DequantizeLinear"],
    )


def _flags() -> frozenset[str]:
    """Flags of the first processor; x86 lists `flags`, Arm `Features`."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _cpu_model() -> str:
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
