"""The command line. Exit status: 0 budget met, 1 not met (the front is still written), 2 bad input, 3 something broke,
130 stopped by Ctrl-C.
"""

import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paredown.core.budget import Budget
from paredown.core.effort import Effort
from paredown.core.errors import ArtifactError, ExportError, ParedownError, ParityError, RecipeError, TaskError
from paredown.core.report import Report
from paredown.core.target import Target
from paredown.core.training import Training

app = typer.Typer(
    help="Pare a trained PyTorch model down to a budget, measured on the file that ships.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Terminal(Console):
    """Whose reader may leave early (`| head`): the rest is dropped, and the exit status stays the command's own."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


_out, _err = Terminal(), Terminal(stderr=True)

TaskFile = Annotated[str, typer.Argument(metavar="TASK.py[:NAME]", help="a file that defines task() or NAME(), returning a Task")]
Runtime = Annotated[str, typer.Option("--target", help="onnxruntime or openvino")]
BatchSize = Annotated[int, typer.Option("--batch", help="samples per call when latency is measured")]
Threads = Annotated[int, typer.Option("--threads", help="of the runtime")]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="also mask more and more of each group and each layer, and evaluate; takes a while")
]
_THREADS = Target().threads
_STOPPED = 130


@app.command()
def compress(  # noqa: PLR0913, PLR0917 (typer reads a command's options from its signature)
    task: TaskFile,
    max_drop: Annotated[str, typer.Option(help='"1%" of the baseline, or 0.01 in metric units')] = "1%",
    latency: Annotated[str | None, typer.Option(help='"0.4x" or "3 ms"')] = None,
    size: Annotated[str | None, typer.Option(help='"0.25x" or "5 MB"')] = None,
    target: Runtime = "onnxruntime",
    batch: BatchSize = 1,
    threads: Threads = _THREADS,
    recipe: Annotated[Path | None, typer.Option(help="a fixed recipe (YAML or JSON) instead of a planned one")] = None,
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/run"),
    effort: Annotated[str, typer.Option(help='of each recovery: "3 epochs", "200 steps", "60 s"')] = "3 epochs",
    learning_rate: Annotated[float | None, typer.Option(help="of each recovery, at its peak; default 0.02")] = None,
    seed: int = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="take up the finished stages in --out, and the one that was running")
    ] = False,
    sensitivity: Sensitivity = False,
) -> None:
    """Compress a task under a budget; write model, checkpoint, recipe and report to --out."""
    from paredown.pipeline.compress import compress as run
    from paredown.render.terminal import ProgressBars

    budget = Budget(_drop(max_drop), latency, size)
    chosen = Target(target, batch, threads)  # type: ignore[arg-type]  # Target checks the name
    steps = None if recipe is None else _recipe(recipe)
    training = Training() if learning_rate is None else Training(learning_rate=learning_rate)
    with ProgressBars(_err) as progress:
        report = run(
            load_task(task), budget, target=chosen, out=out, recipe=steps, effort=replace(training, effort=Effort.parse(effort)),
            seed=seed, progress=progress, existing="resume" if resume else "refuse", sensitivity=sensitivity,
        )  # fmt: skip
    _conclude(report, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of the run; an earlier demo in it is replaced")] = Path("runs/demo"),
    sensitivity: Sensitivity = False,
) -> None:
    """Train a small convnet on scikit-learn's digits, then compress it: drop 2 points, 0.6x latency, 0.18x size."""
    from paredown.pipeline.demo import run_demo
    from paredown.render.terminal import ProgressBars

    with ProgressBars(_err) as progress:
        report = run_demo(out, sensitivity=sensitivity, progress=progress)
    _conclude(report, out)


@app.command()
def doctor(
    task: TaskFile,
    target: Runtime = "onnxruntime",
    batch: BatchSize = 1,
    threads: Threads = _THREADS,
    sensitivity: Sensitivity = False,
    quantization: Annotated[bool, typer.Option("--quantization", help="also what int8 costs each layer, and the remedy")] = False,
    recipe: Annotated[Path | None, typer.Option(help="whose quantize step --quantization takes instead of the default")] = None,
) -> None:
    """What can be pruned and what can't, and where the model stands: metric, latency, size, MACs. Changes nothing."""
    from paredown.core.steps import Quantize
    from paredown.pipeline.analyze import analyze, prunable
    from paredown.render.terminal import ProgressBars, doctor_table, prunable_table

    chosen = Target(target, batch, threads)  # type: ignore[arg-type]  # Target checks the name
    steps = () if recipe is None else _recipe(recipe).steps
    step = next((each for each in steps if isinstance(each, Quantize)), Quantize()) if quantization or recipe else None
    found = load_task(task)
    try:
        with ProgressBars(_err) as progress:
            profile = analyze(found, chosen, sensitivity=sensitivity, quantization=step, progress=progress)
    except (ExportError, ParityError):  # what can be pruned doesn't depend on a file
        _out.print(prunable_table(*prunable(found)))
        raise
    _out.print(doctor_table(profile))


@app.command()
def measure(
    file: Annotated[Path, typer.Argument(metavar="A.onnx")],
    against: Annotated[Path, typer.Option(metavar="B.onnx", help="the baseline")],
    target: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default: what the file was made for")] = None,
    batch: BatchSize = 1,
    threads: Threads = _THREADS,
) -> None:
    """Paired latency, bytes and outputs of one file against another, on random inputs. Also on another machine."""
    from paredown.pipeline.compare import compare_files
    from paredown.render.terminal import measure_table

    _out.print(measure_table(compare_files(file, against, runtime=target, batch=batch, threads=threads)))


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="the --out folder of a finished run")]) -> None:
    """Print the report of a finished run and draw report.html anew."""
    from paredown.pipeline.store import read_report
    from paredown.render.html import render_html
    from paredown.render.terminal import summary

    found = read_report(folder)
    page = (folder if folder.is_dir() else folder.parent) / "report.html"
    _out.print(summary(found))
    found.with_renderer(render_html).save_html(page)
    _out.print(str(page), markup=False, highlight=False, soft_wrap=True)


def load_task(spec: str) -> Any:
    """The Task that a user's file defines: `FILE.py` (its function `task`) or `FILE.py:NAME`.

    The file is the user's own code, named on the command line; it is executed. Raises TaskError.
    """
    from paredown.task.task import Task

    path, colon, name = spec.partition(":") if not Path(spec).is_file() else (spec, "", "")
    if colon and not name:
        raise TaskError("the function's name must follow the colon", got=spec, remedy="write TASK.py or TASK.py:NAME")
    function = getattr(_module(Path(path)), name or "task", None)
    if not callable(function):
        got = "no such function" if function is None else f"a {type(function).__name__} of that name"
        remedy = f"write def {name or 'task'}(): return paredown.Task(...), or name another: FILE.py:NAME"
        raise TaskError(f"{Path(path).name} must define {name or 'task'}()", got=got, remedy=remedy)
    try:
        task = function()
    except ParedownError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"{name or 'task'}() must return a Task",
            got=f"{_where(error, Path(path))}{_brief(error)}",
            remedy="run it in Python for the whole traceback",
        ) from error
    if not isinstance(task, Task):
        raise TaskError(
            f"{name or 'task'}() must return a paredown.Task", got=type(task).__name__, remedy="return paredown.Task(...)"
        )
    return task


def main() -> None:
    """The entry point."""
    _replace_what_cannot_be_shown()
    sys.exit(run(sys.argv[1:]))


def _replace_what_cannot_be_shown() -> None:
    """A tick that the terminal's encoding lacks comes out as "?", not as an error at the end of a long run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def run(arguments: Sequence[str]) -> int:
    """Exit status of one command line. paredown's own errors are one line on stderr and status 2, others a traceback and 3."""
    try:
        status = int(app(list(arguments), standalone_mode=False) or 0)
        if status == _STOPPED:  # what newer releases of typer make of a KeyboardInterrupt
            raise KeyboardInterrupt
        return status
    except ParedownError as error:
        return _fail(f"{type(error).__name__.removesuffix('Error')}: {error}")
    except (typer.Abort, KeyboardInterrupt):
        _err.print("stopped; finished stages are kept: run the same command with --resume", highlight=False)
        return _STOPPED
    except Exception as error:
        if not hasattr(error, "format_message"):
            traceback.print_exc()  # of the user's own functions, say: no status that speaks of the budget
            return 3
        return _fail(error.format_message())  # the command line itself was wrong


def _fail(message: str) -> int:
    if not message:
        return 2  # the help was shown instead
    _err.print("[bold red]error:[/] ", end="")
    _err.print(message, markup=False, highlight=False, soft_wrap=True)
    return 2


def _conclude(found: Report, out: Path) -> None:
    from paredown.render.terminal import summary

    _out.print(summary(found))
    _out.print(f"{out}/model.onnx  {out}/report.html", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if found.met else 1)


def _module(path: Path) -> Any:
    if not path.is_file() or path.suffix != ".py":
        raise TaskError("the task must be a Python file", got=str(path), remedy="write TASK.py or TASK.py:NAME")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TaskError("the task must be a Python file", got=str(path), remedy="write TASK.py or TASK.py:NAME")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # another module of that name stays what it is
    sys.path.insert(0, str(path.resolve().parent))  # as `python TASK.py` does, for what it imports from beside it
    try:
        spec.loader.exec_module(module)
    except ParedownError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{path.name} must be importable", got=_brief(error), remedy=f"run: python {path.name}") from error
    return module


def _recipe(path: Path) -> Any:
    from paredown.core.recipe import Recipe

    if not path.is_file():
        raise RecipeError("the recipe must be a file", got=str(path), remedy="see `recipe.yaml` of any finished run")
    try:
        return Recipe.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ArtifactError("a recipe is UTF-8 text", got=str(error), remedy="save it as YAML or JSON") from None


def _drop(text: str) -> float | str:
    """ "1%" stays text; "0.01" is a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _where(error: BaseException, file: Path) -> str:
    """The innermost line of the user's file that an error came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"{file.name}:{lines[-1]}: " if lines else ""


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
