import subprocess
import sys

import pytest

from paredown.deploy import child


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_child_runs_the_file_without_torch(floating, runtime) -> None:
    code = (
        "import sys; from paredown.deploy import child; "
        f"status = child.main([{floating.path!r}, '--runtime', {runtime!r}, '--batch', '2', '--threads', '1']); "
        "sys.exit(status or 3 * ('torch' in sys.modules) or 4 * ('onnx' in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_child_is_a_module_that_runs(floating) -> None:
    command = [sys.executable, "-m", "paredown.deploy.child", floating.path, "--batch", "3", "--runs", "1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_child_returns_zero_in_this_process_too(floating) -> None:
    assert child.main([floating.path, "--batch", "1", "--threads", "1"]) == 0
