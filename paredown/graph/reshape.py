"""How view, reshape, flatten and squeeze map dimensions: blocks of input dimensions that become blocks of output dimensions.

(batch, 12, 4, 4) -> (batch, 3, 64) has the blocks [batch] -> [batch] and [12, 4, 4] -> [3, 64].
"""

import math
from collections.abc import Sequence
from typing import Any

Block = tuple[list[int], list[int]]


def blocks(before: Sequence[Any], after: Sequence[Any]) -> list[Block]:
    """The finest blocks, of equal products, in order. Sizes may be symbolic; dimensions of size 1 belong to no block."""
    left = [(i, _expression(size)) for i, size in enumerate(before) if size_is_not_one(size)]
    right = [(i, _expression(size)) for i, size in enumerate(after) if size_is_not_one(size)]
    result: list[Block] = []
    while left and right:
        ins, outs = [left.pop(0)], [right.pop(0)]
        while (step := _behind(ins, outs)) and (left if step < 0 else right):
            (ins if step < 0 else outs).append((left if step < 0 else right).pop(0))
        result.append(([i for i, _ in ins], [i for i, _ in outs]))
    if result:
        result[-1][0].extend(i for i, _ in left)
        result[-1][1].extend(i for i, _ in right)
    return result


def size_is_not_one(size: Any) -> bool:
    return type(size) is not int or size != 1


def _behind(ins: list[tuple[int, Any]], outs: list[tuple[int, Any]]) -> int:
    """0 where the products agree, -1 where the input side must take one more dimension, 1 where the output side must."""
    left, right = math.prod(e for _, e in ins), math.prod(e for _, e in outs)
    if left == right:
        return 0
    if type(left) is int and type(right) is int:
        return -1 if right > left else 1
    import sympy  # type: ignore[import-untyped] # it has no stubs; torch's symbolic sizes are made of it

    ratio = right / left  # a number where both have the same symbols
    ratio = ratio if ratio.is_number else sympy.cancel(ratio)
    if ratio == 1:
        return 0
    if ratio.is_number:
        return -1 if ratio > 1 else 1
    return -1 if sympy.fraction(ratio)[1] == 1 else 1


def _expression(size: Any) -> Any:
    return size if type(size) is int else size.node.expr
