"""A page on disk: whole or not at all."""

import contextlib
import errno
import os
import pathlib

from paredown.core.errors import OutputError


def write_page(path: str | pathlib.Path, text: str) -> pathlib.Path:
    """Under another name first, then renamed, so that `path` never holds half a page. Raises OutputError."""
    target = pathlib.Path(path)
    try:
        _replace(target, text)
    except OSError as error:
        raise OutputError(
            "the page must be writable", got=f"{target}: {error.strerror}", remedy="name a file in a folder that is there"
        ) from error
    return target


def _replace(path: pathlib.Path, text: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
