import subprocess
from pathlib import Path

from paredown.deploy.children import command


def test_a_child_takes_nothing_from_the_current_folder(floating, tmp_path: Path) -> None:
    for name in ("argparse", "runpy", "numpy", "paredown"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    run = [*command("paredown.deploy.child"), str(Path(floating.path).resolve()), "--threads", "1", "--runs", "1"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
