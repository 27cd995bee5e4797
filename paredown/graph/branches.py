"""Residual branches that can be dropped whole: x + f(x) becomes x.

In the traced graph a branch is what lies between a tensor x and an addition x + y: every node that depends on x and that y
depends on. None of them may be used anywhere else, and all that they hold (weights, modules) must be theirs alone.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from paredown.core.errors import SurgeryError
from paredown.core.report import Barrier
from paredown.graph.dropped import Dropped
from paredown.graph.equality import compare
from paredown.graph.manifest import Manifest
from paredown.graph.operation import operator_name, shape, short_name
from paredown.graph.propagate import names_of
from paredown.graph.surgery import alias, copy_with, drop_, named_tensors
from paredown.graph.trace import Dynamic, module_path, module_stack, place_of, trace
from paredown.graph.twin import Twin, light_twin, random_twin, runs
from paredown.task.batches import Inputs, apply_tensors, call, evaluating, unfused

_KEEPS_ZERO = frozenset((  # of their first operand; of a product any
    "dropout", "feature_dropout", "mul", "div", "neg", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze",
    "unsqueeze", "permute", "transpose", "contiguous", "clone", "to", "alias", "detach", "getitem", "slice",
))  # fmt: skip
_NEEDED = "the class can't run, or gives something else, without it"
_LEFT = "its last operation is no module of its own, so that nothing can be put in its place"


@dataclass(frozen=True)
class Branch:
    """A residual branch. name: of the innermost module around it and its addition, numbered where it has several.

    dropped: what to put in place of its modules. parameters: names of those that go with it.
    """

    name: str
    dropped: tuple[Dropped, ...]
    parameters: tuple[str, ...]

    def manifest(self) -> Manifest:
        """The cut that drops this branch alone."""
        return Manifest(dropped=self.dropped)


@dataclass(frozen=True)
class Branches:
    """Those of a model, in the order in which they run, and why others can't be dropped."""

    branches: tuple[Branch, ...]
    barriers: tuple[Barrier, ...]

    def manifest(self, names: Collection[str]) -> Manifest:
        """The cut that drops the branches of these names; of one that lies within another nothing is left to drop."""
        parts = [part for branch in self.branches if branch.name in names for part in branch.dropped]
        paths = {part.module for part in parts}
        return Manifest(dropped=tuple(p for p in parts if paths.isdisjoint(_around(p.module))))


def residual_branches(
    model: nn.Module, inputs: Inputs, *, dynamic: Dynamic | None = None, protect: Collection[str] = ()
) -> Branches:
    """The branches of `model`, each of which was dropped once, and the class ran and equalled the original with a zero branch.

    inputs: at least 2 samples. protect: names of modules that no branch may touch. The model is not touched.
    Raises TraceError where torch.export can't follow the model.
    """
    program = trace(model, inputs, dynamic)
    barriers: dict[Barrier, None] = {}
    candidates = [(add, _branch(program, model, add, inside)) for add, inside in _residuals(program)]
    forms = _forms(model, inputs, [part.module for _, branch in candidates if branch is not None for part in branch.dropped])
    proposed = list[tuple[fx.Node, Branch]]()
    for add, raw in candidates:
        branch = raw and _formed(raw, forms)
        if branch is None:
            barriers[Barrier(operator_name(add), place_of(add), _LEFT)] = None
        elif any(_is_within(part.module, path) or _is_within(path, part.module) for part in branch.dropped for path in protect):
            barriers[Barrier("protect", branch.name, "protected by the user")] = None
        else:
            proposed.append((add, branch))
    working = _tried(model, inputs, [branch for _, branch in proposed])
    for (add, _), branch in zip(proposed, working, strict=True):
        if branch is None:
            barriers[Barrier(operator_name(add), place_of(add), _NEEDED)] = None
    return Branches(_numbered([branch for branch in working if branch is not None]), tuple(barriers))


def _tried(model: nn.Module, inputs: Inputs, branches: Sequence[Branch]) -> list[Branch | None]:
    """The branches in the first form in which the class can do without them: all of them dropped at once, or else each alone."""
    result: list[Branch | None] = [None] * len(branches)
    if not branches:
        return result
    light = light_twin(model, inputs, 0, torch.float32, samples=3)
    twin = light if runs(light) else random_twin(model, inputs, 0)
    for form in (_short, _whole, _last, _last_whole):
        left = [i for i, branch in enumerate(result) if branch is None]
        tried = {i: form(branches[i]) for i in left}
        together = left and _works(twin, list(tried.values()))
        for i in left:
            if together or (len(left) > 1 and _works(twin, [tried[i]])):
                result[i] = tried[i]
    return result


def _works(twin: Twin, branches: Sequence[Branch]) -> bool:
    manifest = Manifest(dropped=tuple(part for branch in branches for part in branch.dropped))
    candidate = copy_with(twin.model, {name: alias(tensor) for name, tensor in named_tensors(twin.model).items()})
    try:
        compare(drop_(candidate, manifest), twin, manifest, ())
    except SurgeryError:
        return False
    return True


def _short(branch: Branch) -> Branch:
    """All modules dropped, zeros of size 1."""
    return branch


def _whole(branch: Branch) -> Branch:
    """All modules dropped, zeros of the size of what the last one gets."""
    return replace(branch, dropped=(*branch.dropped[:-1], replace(branch.dropped[-1], whole=True)))


def _last(branch: Branch) -> Branch:
    """Only the last module dropped: what comes before it runs in vain, its weights stay."""
    last = branch.dropped[-1]
    return replace(branch, dropped=(last,), parameters=tuple(n for n in branch.parameters if _is_within(n, last.module)))


def _last_whole(branch: Branch) -> Branch:
    return _whole(_last(branch))


def _forms(model: nn.Module, inputs: Inputs, paths: Sequence[str]) -> dict[str, Dropped]:
    """What these modules return, found out by running the model; without those that return anything but tensors and None."""
    forms: dict[str, Dropped] = {}

    def note(path: str, output: Any) -> None:
        several = isinstance(output, tuple | list)
        parts = list(output) if several else [output]
        if all(part is None or isinstance(part, Tensor) for part in parts) and isinstance(parts[0], Tensor):
            forms[path] = Dropped(path, tuple(None if part is None else part.dim() for part in parts), several)

    handles = [model.get_submodule(p).register_forward_hook(lambda *a, path=p: note(path, a[2])) for p in paths]
    try:
        with evaluating(model), unfused(), torch.no_grad():
            call(model, apply_tensors(inputs, torch.clone))
    finally:
        for handle in handles:
            handle.remove()
    return forms


def _formed(branch: Branch, forms: dict[str, Dropped]) -> Branch | None:
    """The last module returns zeros of its form; so do others that return several things, since they can't hand on one."""
    *others, last = (part.module for part in branch.dropped)
    if last not in forms:
        return None
    before = (forms[m] if m in forms and forms[m].several else Dropped(m) for m in others)
    return replace(branch, dropped=(*before, forms[last]))


def _residuals(program: ExportedProgram) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Additions x + y, and the nodes between x and y, y among them."""
    for node in program.graph.nodes:
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if node.op != "call_function" or short_name(node) != "add" or len(operands) != 2:
            continue
        if str(shape(operands[0])) != str(shape(operands[1])) or node.kwargs.get("alpha", 1) != 1:
            continue
        for x, y in (operands, operands[::-1]):
            inside = _between(x, y)
            if inside and all(user in inside or user is node for each in inside for user in each.users):
                yield node, inside
                break


def _between(x: fx.Node, y: fx.Node) -> set[fx.Node]:
    """Nodes that depend on x and that y depends on, y included; empty where y doesn't depend on x."""
    order = {node: i for i, node in enumerate(x.graph.nodes)}
    above, queue = {y}, [y]
    while queue:
        for node in queue.pop().all_input_nodes:
            if order[node] > order[x] and node not in above:
                above.add(node)
                queue.append(node)
    inside, below = set[fx.Node](), {x}
    for node in sorted(above, key=order.__getitem__):
        if not below.isdisjoint(node.all_input_nodes):
            below.add(node)
            inside.add(node)
    return inside if y in inside else set()


def _branch(program: ExportedProgram, model: nn.Module, add: fx.Node, inside: set[fx.Node]) -> Branch | None:
    """None where no module of the branch stands last, but for operators that turn zeros into zeros."""
    owned = _owned(program, inside)
    last: fx.Node | None = next(n for n in add.args[:2] if isinstance(n, fx.Node) and n in inside)
    while last is not None and not (path := _outermost(last, owned)):
        last = _operand(last, inside) if short_name(last) in _KEEPS_ZERO else None
    if last is None:
        return None
    modules = dict.fromkeys(found for node in program.graph.nodes if node in inside and (found := _outermost(node, owned)))
    parameters = _parameters(model, modules)
    if parameters is None:
        return None
    return Branch(_name(add, modules), (*(Dropped(m) for m in modules if m != path), Dropped(path)), parameters)


def _owned(program: ExportedProgram, inside: set[fx.Node]) -> set[str]:
    """Modules all of whose operators lie inside, but for those that no input reaches (a table of relative positions), and for
    sizes, which are computed once for all layers.
    """
    reached = set[fx.Node]()
    given = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.name in given or (_is_tensor(node) and not reached.isdisjoint(node.all_input_nodes)):
            reached.add(node)
    stacks = [
        (module_stack(node), node in inside) for node in program.graph.nodes if node in reached and node.op == "call_function"
    ]
    return {p for stack, mine in stacks if mine for p in stack} - {p for stack, mine in stacks if not mine for p in stack}


def _is_tensor(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), torch.SymInt | int)


def _outermost(node: fx.Node, owned: set[str]) -> str:
    return next((path for path in reversed(module_stack(node)) if path in owned), "")


def _operand(node: fx.Node, inside: set[fx.Node]) -> fx.Node | None:
    """The first operand of an operator, where it lies inside; of a product any factor."""
    choice = node.all_input_nodes if short_name(node) == "mul" else node.all_input_nodes[:1]
    return next((n for n in choice if n in inside), None)


def _parameters(model: nn.Module, modules: Collection[str]) -> tuple[str, ...] | None:
    """Names of what the modules hold; None where anything else reads it."""
    first = names_of(model)
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    held = {id(t) for name, t in everything if any(_is_within(name, m) for m in modules)}
    shared = any(id(t) in held and not any(_is_within(name, m) for m in modules) for name, t in everything)
    return None if shared else tuple(first[id(t)] for _, t in model.named_parameters() if id(t) in held)


def _name(add: fx.Node, modules: Collection[str]) -> str:
    """The innermost module around the addition and all that is dropped."""
    around = [".".join(parts) for parts in (path.split(".")[:-1] for path in modules)]
    paths = [module_path(add), *around]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*(path.split(".") for path in paths), strict=False))
    return ".".join(parts[0] for parts in common)


def _is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.") or not module


def _around(module: str) -> list[str]:
    """The modules that hold it."""
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _numbered(branches: list[Branch]) -> tuple[Branch, ...]:
    names = [branch.name for branch in branches]
    return tuple(
        replace(b, name=f"{b.name}:{names[:i].count(b.name)}") if names.count(b.name) > 1 else b for i, b in enumerate(branches)
    )
