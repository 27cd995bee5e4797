"""How a module of ours is started in a process of its own: with this process's paths, whatever the current folder holds.

`python -m` would look into the current folder first, and a user's numpy.py or queue.py there would be taken for the real one.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def command(module: str) -> list[str]:
    """What starts `module` as a program; its arguments follow."""
    current = {"", str(Path.cwd())} - {str(_ROOT)}
    paths = [path for path in sys.path if path not in current]
    paths += [] if str(_ROOT) in paths else [str(_ROOT)]
    start = f"import sys; sys.path[:] = {paths!r}; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-c", start]
