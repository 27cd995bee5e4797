import getpass
import platform

import pytest

from paredown.core.errors import ArtifactError
from paredown.core.target import Target
from paredown.deploy import capabilities
from paredown.deploy.capabilities import environment, executed_operators, has_vnni


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx avx2", False), ("avx2 avx512_vnni", True), ("avx2 avx_vnni", True), ("avx512_vnni_like", False)],
)
def test_vnni_is_read_from_the_processor_flags(flags, expected, tmp_path, monkeypatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(capabilities, "_CPUINFO", tmp_path / "cpuinfo")
    assert has_vnni() is expected


def test_vnni_is_denied_where_the_flags_cannot_be_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(capabilities, "_CPUINFO", tmp_path / "absent")
    assert has_vnni() is False
    assert environment(Target())["instruction sets"] == "unknown"


def test_environment_names_versions_but_not_the_host() -> None:
    found = environment(Target("openvino", threads=1))
    assert {"cpu", "cores", "os", "python", "torch", "onnx", "onnxruntime", "openvino", "threads"} <= set(found)
    assert found["threads"] == "1"
    text = " ".join(found.values())
    assert platform.node() not in text or not platform.node()
    assert "/home" not in text
    assert getpass.getuser() not in text.split()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_float_file_has_no_int8_operator(floating, runtime) -> None:
    found = executed_operators(floating.path, runtime)
    assert found.int8 == {}
    assert found.conversions == 0
    assert found.floating


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_executed_operators_of_a_broken_file_is_an_artifact_error(tmp_path, runtime) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError):
        executed_operators(tmp_path / "x.onnx", runtime)
