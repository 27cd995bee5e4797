"""What this machine and its runtimes can do: instruction sets, versions, and which operators of a file really run in int8."""

import importlib.metadata
import os
import pathlib
import platform
import tempfile
from collections import Counter
from collections.abc import Iterable

from paredown.core.report import Operators
from paredown.core.target import Target

_CPUINFO = pathlib.Path("/proc/cpuinfo")
_INSTRUCTION_SETS = {
    "sse4_2": "SSE4.2", "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX512F", "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI", "avx512_bf16": "AVX512-BF16", "amx_int8": "AMX-INT8", "amx_bf16": "AMX-BF16",
    "asimd": "NEON", "asimddp": "NEON-DOTPROD", "i8mm": "I8MM", "sve": "SVE",
}  # fmt: skip
_PREFIXES = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize", "Nhwc")
_LAYOUT = ("Convert", "Reorder")  # of OpenVINO; of floats they serve the kernel behind them
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "FakeQuantize", *_LAYOUT)
_PARTS = ("Shape", "Slice", "Split")  # with what only moves values, of any type
_NO_LAYERS, _NUMBERS = ("Input", "Output", "Const"), ("f32", "f16", "bf16", "u8", "i8")  # the rest computes shapes


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


def executed_operators(path: str | pathlib.Path, target: Target | str = "onnxruntime") -> Operators:
    """What the target's runtime makes of a file. Raises ArtifactError where it can't be loaded, MissingExtraError where the
    runtime isn't installed.
    """
    chosen = Target.of(target)
    return _of_openvino(pathlib.Path(path), chosen) if chosen.runtime == "openvino" else _of_onnxruntime(pathlib.Path(path))


def _of_onnxruntime(path: pathlib.Path) -> Operators:
    """From the graph that it writes once it has optimized it."""
    import onnx
    import onnxruntime

    from paredown.deploy.nodes import MOVES
    from paredown.deploy.onnxruntime import options
    from paredown.deploy.ports import unreadable

    chosen = options(Target(threads=1))
    with tempfile.TemporaryDirectory() as folder:
        optimized = pathlib.Path(folder) / "optimized.onnx"
        chosen.optimized_model_filepath = str(optimized)
        try:
            onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes derive from Exception alone
            raise unreadable(path, error) from error
        kinds = [node.op_type for node in onnx.load(str(optimized)).graph.node]
    return _counted((kind, kind.startswith(_PREFIXES)) for kind in kinds if kind not in (*MOVES, *_PARTS))


def _of_openvino(path: pathlib.Path, target: Target) -> Operators:
    """From its executed graph, where every layer says its kernel ("jit_avx512_I8") and what it computes in."""
    from paredown.deploy.openvino import compiled

    layers = [layer.get_rt_info() for layer in compiled(path, target).get_runtime_model().get_ordered_ops()]
    told = [tuple(layer[key].astype(str) for key in ("layerType", "primitiveType", "runtimePrecision")) for layer in layers]
    run = [each for each in told if each[0] not in _NO_LAYERS and not each[1].startswith("unknown")]  # those only look at memory
    numbers = [(kind, kernel.endswith("_I8")) for kind, kernel, type_ in run if type_ in _NUMBERS]
    return _counted((kind, integers) for kind, integers in numbers if integers or kind not in _LAYOUT)


def _counted(operators: Iterable[tuple[str, bool]]) -> Operators:
    """operators: each one's type, and whether it computes on integers."""
    found = [*operators]
    int8 = Counter(kind for kind, integers in found if integers and kind not in _CONVERSIONS)
    floating = Counter(kind for kind, integers in found if not integers and kind not in _CONVERSIONS)
    conversions = sum(kind in _CONVERSIONS for kind, _ in found)
    return Operators(dict(sorted(int8.items())), dict(sorted(floating.items())), conversions)


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
