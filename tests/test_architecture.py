"""The architecture is a test: layers, the public names, what an import costs, and the page that shows the whole flow."""

import subprocess
import sys
from pathlib import Path

import paredown

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("onnx", "onnxruntime", "onnxscript", "openvino", "accelerate", "plotly", "scipy.optimize", "sklearn")


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_imports_go_downward_only() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_public_names_are_few_and_each_is_there() -> None:
    assert len(paredown.__all__) < 30
    assert all(getattr(paredown, name) is not None for name in paredown.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(paredown, "prunes")


def test_import_loads_nothing_heavy_besides_torch() -> None:
    code = f"import sys, paredown; paredown.Task; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python("-c", code).strip() == "[]"


def test_core_and_render_run_without_torch() -> None:
    code = "import sys, paredown.core.report, paredown.render.html, paredown.render.terminal; print('torch' in sys.modules)"
    assert python("-c", code).strip() == "False"


def test_the_whole_flow_fits_on_one_page_and_runs() -> None:
    assert len((ROOT / "docs" / "tiny.py").read_text().splitlines()) <= 170
    printed = python(str(ROOT / "docs" / "tiny.py"))
    assert printed.count("kept") == 2, printed
