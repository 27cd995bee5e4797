"""Columns of the flat parquet files beside the project, read without pyarrow (which nothing else here would need).

Only what those files hold: number columns, not nested, zstd or no compression (by the system's libzstd), values plain or by
dictionary (https://parquet.apache.org/docs/file-format). Anything else raises ValueError. Use pyarrow for any other file.
"""

import ctypes.util
import pathlib
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {1: "<i4", 2: "<i8", 4: "<f4", 5: "<f8"}
_BOOLEAN_TRUE, _BOOLEAN_FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def read_columns(path: pathlib.Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """name -> (rows,) values; missing floats are NaN."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    if data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        raise ValueError(f"{path.name} is not a parquet file")
    footer, _ = _struct(data, len(data) - 8 - length)
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for group in footer[4]:
        for chunk in group[1]:
            meta = chunk[3]
            name = b".".join(meta[3]).decode()
            if name in columns:
                columns[name].append(_chunk(data, meta))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _chunk(data: bytes, meta: dict[int, Any]) -> NDArray[Any]:
    """All pages of one column in one row group."""
    kind, codec, rows = _TYPES[meta[1]], meta[4], meta[5]
    at = min(meta[9], meta.get(11, meta[9]))
    dictionary: NDArray[Any] = np.empty(0)
    parts: list[NDArray[Any]] = []
    while sum(map(len, parts)) < rows:
        header, start = _struct(data, at)
        at = start + header[3]
        page = _unpacked(data[start:at], codec, header[2])
        if header[1] == 2:
            dictionary = np.frombuffer(page, kind, header[7][1])
        elif header[1] == 0:
            parts.append(_page(page, header[5], kind, dictionary))
        else:
            raise ValueError(f"page type {header[1]} is not read here")
    return np.concatenate(parts)


def _page(page: bytes, header: dict[int, Any], kind: str, dictionary: NDArray[Any]) -> NDArray[Any]:
    """A data page of version 1: definition levels (1 where there is a value), then the values."""
    count, encoding = header[1], header[2]
    (length,) = struct.unpack_from("<I", page)
    present = _runs(page, 4, 4 + length, 1, count).astype(bool)
    body, found = 4 + length, int(present.sum())
    if encoding == 0:
        values = np.frombuffer(page, kind, found, body)
    elif encoding in (2, 8):
        values = dictionary[_runs(page, body + 1, len(page), page[body], found)]
    else:
        raise ValueError(f"encoding {encoding} is not read here")
    if found == count:
        return values
    full = np.full(count, np.nan, values.dtype)
    full[present] = values
    return full


def _runs(data: bytes, at: int, end: int, width: int, count: int) -> NDArray[np.int64]:
    """The hybrid of run-length and bit-packed groups: `count` integers of `width` bits."""
    if width == 0:
        return np.zeros(count, np.int64)
    parts: list[NDArray[np.int64]] = []
    got = 0
    while got < count and at < end:
        header, at = _varint(data, at)
        if header & 1:
            size = (header >> 1) * width
            bits = np.unpackbits(np.frombuffer(data, np.uint8, min(size, end - at), at), bitorder="little")
            bits = bits[: len(bits) // width * width].reshape(-1, width).astype(np.int64)
            parts.append(bits @ (1 << np.arange(width, dtype=np.int64)))
            at += size
        else:
            size = (width + 7) // 8
            parts.append(np.full(header >> 1, int.from_bytes(data[at : at + size], "little"), np.int64))
            at += size
        got += len(parts[-1])
    return np.concatenate(parts)[:count]


def _unpacked(page: bytes, codec: int, size: int) -> bytes:
    if codec == 0:
        return page
    name = ctypes.util.find_library("zstd")
    if codec != 6 or name is None:
        raise ValueError(f"compression {codec} is not read here" if codec != 6 else "libzstd is not installed")
    out = ctypes.create_string_buffer(size)
    decompress = ctypes.CDLL(name).ZSTD_decompress
    decompress.restype, decompress.argtypes = (
        ctypes.c_size_t,
        (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t),
    )
    if decompress(out, size, page, len(page)) != size:
        raise ValueError("a page has the wrong length")
    return out.raw


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Thrift's compact protocol: field number -> value."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        byte = data[at]
        at += 1
        if byte >> 4:
            number += byte >> 4
        else:
            raw, at = _varint(data, at)
            number = raw >> 1 ^ -(raw & 1)
        fields[number], at = _value(data, at, byte & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_BOOLEAN_TRUE, _BOOLEAN_FALSE):
        return kind == _BOOLEAN_TRUE, at
    if kind == _BYTE:
        return data[at], at + 1
    if kind == _DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == _BINARY:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if kind in (_LIST, _SET):
        return _list(data, at)
    if kind == _STRUCT:
        return _struct(data, at)
    raw, at = _varint(data, at)  # a zigzag integer of 16, 32 or 64 bits
    return raw >> 1 ^ -(raw & 1), at


def _list(data: bytes, at: int) -> tuple[list[Any], int]:
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _varint(data, at)
    items = []
    for _ in range(size):
        item, at = _value(data, at, kind)
        items.append(item)
    return items, at
