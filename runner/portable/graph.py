"""Divides any network into blocks that run one after another, found in its graph by torch.fx.

A block ends where only one tensor is still needed: what comes after takes nothing else of what came before. A module is
traced into only if it computes the same in training and evaluation mode and is a chain of its children, as
nn.Sequential is; every other module, such as a residual block, stays one step. So a block runs the network's own
modules, which still know training from evaluation.
"""

from __future__ import annotations

import copy
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, fx, nn

from .backbone import Block

CONSTANT = "_tensor_constant"
"""What torch.fx begins the names of constant tensors with."""
DROPOUT = "functional_dropout"
"""What the names of modules begin with that take the place of `torch.nn.functional.dropout`."""


class UntracedError(ValueError):
    """A network's forward pass cannot be traced, or divided. The message says why."""


class _Tracer(fx.Tracer):
    """Traces into the opened modules. Every other one is a single step."""

    def __init__(self, opened: set[nn.Module]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened


def find_blocks(network: nn.Module, size: int) -> tuple[list[Block], list[torch.Size]]:
    """The blocks of a network in the order of its forward pass, and the shapes of their outputs for two images.

    Args:
        network: In evaluation mode. It gets a buffer for each constant tensor of its forward pass, and a module for
            each dropout that is a function: such a function would drop nothing in training, as it was traced.
        size: Height and width of images, in pixels.

    Raises `UntracedError` if its forward pass cannot be traced, or if no single tensor leads to its output, and
    whatever it raises itself for images of a size that it cannot take.
    """
    opened, candidates = {network}, list(network.children())
    while candidates:
        module = candidates.pop()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or _is_chain(module):
            opened.add(module)
            candidates += module.children()
    try:
        graph = _trace(network, opened)
    except Exception as error:  # a forward pass may raise anything when it is traced
        raise UntracedError(f"its forward pass cannot be traced ({first_line(error)})") from error
    for name in [name for name in vars(network) if name.startswith(CONSTANT)]:
        constant = network.__dict__.pop(name)  # which follows the model to its device as a buffer
        network.register_buffer(name, constant, persistent=False)
    _use_dropout_modules(graph, network)
    if not (points := _split_points(graph)) or _output(graph) is not points[-1]:
        raise UntracedError("no single tensor leads to its output")
    return _between(graph, points, network, size)


def _between(
    graph: fx.Graph, points: Sequence[fx.Node], network: nn.Module, size: int
) -> tuple[list[Block], list[torch.Size]]:
    """The blocks between split points and the shapes of their outputs; none ends where that is a list or tuple."""
    nodes, blocks, shapes, names = list(graph.nodes), [], [], set[str]()
    source = next(node for node in nodes if node.op == "placeholder")
    with _on_meta(network, size) as (twin, values):
        for point in points:
            block = _block(nodes[nodes.index(source) + 1 : nodes.index(point) + 1], source, names)
            output = run_block(twin, block, values)
            if isinstance(output, Tensor):
                names.add(block.name)
                blocks.append(block)
                shapes.append(output.shape)
                source, values = point, output
    if source is not points[-1]:
        raise UntracedError("its output is no tensor")
    return blocks, shapes


def _use_dropout_modules(graph: fx.Graph, network: nn.Module) -> None:
    """Put modules, which know training from evaluation, in the place of dropouts that are functions."""
    functions = [node for node in graph.nodes if node.target is nn.functional.dropout]
    for number, node in enumerate(functions):
        share = cast(float, node.kwargs.get("p", (*node.args, 0.5)[1]))
        network.add_module(name := f"{DROPOUT}_{number}", nn.Dropout(share))
        with warnings.catch_warnings(action="ignore"), graph.inserting_after(node):
            module = graph.call_module(name, node.args[:1])  # it warns that the graph knows no modules
        node.replace_all_uses_with(module)
        graph.erase_node(node)


def output_shapes(network: nn.Module, blocks: Sequence[Block], size: int) -> list[torch.Size]:
    """Shape of each block's output for two images of size × size, found on the meta device, without computing.

    Args:
        network: In evaluation mode.
        blocks: From `find_blocks`.
        size: Height and width in pixels.

    Raises `UntracedError` if an output is no tensor, and whatever the network raises for images of a size that it
    cannot take.
    """
    shapes = []
    with _on_meta(network, size) as (twin, values):
        for block in blocks:
            values = run_block(twin, block, values)
            if not isinstance(values, Tensor):
                raise UntracedError(f"the output of {block.name} is no tensor")
            shapes.append(values.shape)
    return shapes


@contextmanager
def _on_meta(network: nn.Module, size: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """A copy of a network on the meta device, and two images."""
    with torch.no_grad(), torch.device("meta"):
        yield copy.deepcopy(network).to("meta"), torch.zeros(2, 3, size, size)


def run_block(network: nn.Module, block: Block, values: Tensor) -> Tensor:
    """A block's output."""
    if block.function is not None:
        return block.function(network, values)
    result: Tensor = network.get_submodule(block.name)(values)
    return result


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Within the block, parameters of new modules go to torch's meta device: no memory is used, nothing is drawn.

    Buffers are real: some networks compute them when they are built, and no file of weights has them.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _trace(module: nn.Module, opened: set[nn.Module]) -> fx.Graph:
    """The graph of a module's forward pass. Arguments with defaults have them."""
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    graph = _Tracer(opened).trace(module, concrete_args=defaults)
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    needed, pending = (
        {placeholder},
        [node for node in graph.nodes if node.op == "output" or _is_in_place(node)],
    )
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    for node in reversed(list(graph.nodes)):  # assertions, and heads that only training uses
        if node not in needed:
            graph.erase_node(node)
    return graph


def _is_in_place(node: fx.Node) -> bool:
    return node.op == "call_method" and str(node.target).endswith("_")


def _is_chain(module: nn.Module) -> bool:
    """Whether a module only calls its children one after another, the same in training and evaluation mode."""
    if not any(True for _ in module.children()):
        return False
    graphs, modes = [], {each: each.training for each in module.modules()}
    try:
        for mode in (True, False):
            module.train(mode)
            graphs.append(_trace(module, {module}))
    except Exception:  # what cannot be traced stays one step
        return False
    finally:
        for each, mode in modes.items():
            each.training = mode
    if str(graphs[0]) != str(graphs[1]):
        return False
    calls = [node for node in graphs[0].nodes if node.op == "call_module"]
    points = _split_points(graphs[0])
    return bool(calls) and all(node in points for node in calls)


def _split_points(graph: fx.Graph) -> list[fx.Node]:
    """The nodes after which their own output is the only tensor of the forward pass that is still needed."""
    nodes = list(graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    points, alive = [], set[fx.Node]()
    for index, node in enumerate(nodes):
        if node.op not in ("get_attr", "output"):
            alive.add(node)
        alive = {each for each in alive if last_use[each] > index}
        if alive == {node} and node.op != "placeholder":
            points.append(node)
    return points


def _output(graph: fx.Graph) -> object:
    """What a graph returns."""
    return next(node.args[0] for node in graph.nodes if node.op == "output")


def _block(steps: Sequence[fx.Node], source: fx.Node, taken: set[str]) -> Block:
    """The block that these steps are, which take the output of `source`."""
    last = steps[-1]
    members = tuple(
        dict.fromkeys(str(node.target) for node in steps if node.op in ("call_module", "get_attr"))
    )
    name = str(last.target) if last.op == "call_module" and str(last.target) not in taken else last.name
    while name in taken:
        name += "_"
    if len(steps) == 1 and name == last.target and last.args == (source,) and not last.kwargs:
        return Block(name, members)
    part = fx.Graph()
    values = {source: part.placeholder("values")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in values:  # a parameter that an earlier block uses, too
            values[node] = part.node_copy(node)
        return values[node]

    for node in steps:
        values[node] = part.node_copy(node, copied)
    part.output(values[last])
    code = part.python_code("self")
    namespace: dict[str, object] = dict(code.globals)
    exec(code.src, namespace)  # noqa: S102 (torch.fx writes this code, as it does for its own modules)
    function: Callable[[nn.Module, Tensor], Tensor] = namespace["forward"]  # type: ignore[assignment]
    attributes = [str(node.target) for node in part.nodes if node.op == "get_attr"]
    return Block(name, tuple(dict.fromkeys([*members, *attributes])), function, code.src)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened and without a full stop; its class if it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 200, placeholder=" …").rstrip(".")
