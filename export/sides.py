"""Images of any size for networks that take sides of some multiple alone: padded, computed, cut to size.

Mirrored at the right and lower edges, as the projects of such networks do themselves. In the graph it stands
before and behind what was traced, so that whoever runs the graph needs to know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sides:
    """Which sides of images a network can take."""

    multiple: int = 1
    least: int = 1

    @property
    def free(self) -> bool:
        """Whether there is nothing to pad."""
        return self.multiple == 1 and self.least <= 1

    def of(self, side: int) -> int:
        """Returns the smallest side that is possible and no smaller than this one."""
        return -(-max(side, self.least) // self.multiple) * self.multiple


class Padded(nn.Module):
    """A network that enlarges `scale` times, with its images padded to sides that it takes.

    [N, 3, H, W] -> [N, 3, scale * H, scale * W] of any H and W.
    """

    def __init__(self, network: nn.Module, sides: Sides, scale: int) -> None:
        super().__init__()
        self.network, self.sides, self.scale = network, sides, scale

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = x.index_select(2, self._places(height)).index_select(3, self._places(width))
        result: Tensor = self.network(x)
        return result[:, :, : height * self.scale, : width * self.scale]

    def _places(self, side: int) -> Tensor:
        """[padded side]: which pixel of the image stands at each place, mirrored beyond its edge."""
        places = torch.arange(self.sides.of(side))
        return torch.where(places < side, places, (2 * (side - 1) - places).clamp(min=0))


PADDING = """
<ir_version: 10, opset_import: ["" : 20]>
padding (float[n, 3, height, width] images) => (float[n, 3, taller, wider] padded) {{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    multiple = Constant <value_int = {multiple}> ()
    spare = Constant <value_int = {spare}> ()
    least = Constant <value_int = {least}> ()
    shape = Shape (images)
    {height}
    {width}
    taller_images = Gather <axis = 2> (images, height_places)
    padded = Gather <axis = 3> (taller_images, width_places)
}}
"""
SIDE = """
    {side}_axis = Constant <value_int = {axis}> ()
    {side}_now = Gather (shape, {side}_axis)
    {side}_more = Add ({side}_now, spare)
    {side}_count = Div ({side}_more, multiple)
    {side}_even = Mul ({side}_count, multiple)
    {side}_then = Max ({side}_even, least)
    {side}_range = Range (zero, {side}_then, one)
    {side}_inside = Less ({side}_range, {side}_now)
    {side}_last = Sub ({side}_now, one)
    {side}_twice = Mul ({side}_last, two)
    {side}_mirror = Sub ({side}_twice, {side}_range)
    {side}_mirrored = Max ({side}_mirror, zero)
    {side}_places = Where ({side}_inside, {side}_range, {side}_mirrored)
"""
CUTTING = """
<ir_version: 10, opset_import: ["" : 20]>
cutting (float[n, 3, a, b] whole, int64[4] shape) => (float[n, 3, c, d] larger) {{
    axes = Constant <value_ints = [2, 3]> ()
    from = Constant <value_ints = [0, 0]> ()
    first = Constant <value_ints = [2]> ()
    behind = Constant <value_ints = [4]> ()
    scale = Constant <value_int = {scale}> ()
    sides = Slice (shape, first, behind)
    to = Mul (sides, scale)
    larger = Slice (whole, from, to, axes)
}}
"""


def add_padding(model: onnx.ModelProto, sides: Sides, scale: int) -> None:
    """Puts a `Padded`'s padding before a graph of one input and one output, and its cutting behind."""
    graph = model.graph
    source, target = graph.input[0].name, graph.output[0].name
    height, width = (SIDE.format(side=side, axis=axis) for axis, side in ((2, "height"), (3, "width")))
    numbers = {"multiple": sides.multiple, "spare": sides.multiple - 1, "least": sides.of(1)}
    before = onnx.parser.parse_model(PADDING.format(height=height, width=width, **numbers)).graph.node
    behind = onnx.parser.parse_model(CUTTING.format(scale=scale)).graph.node
    inner = list(graph.node)
    _renamed(inner, {source: "padding.padded", target: "cutting.whole"})
    for nodes in (before, behind):
        names = {name: f"padding.{name}" for node in nodes for name in (*node.input, *node.output)}
        _renamed(nodes, names | {"images": source, "larger": target, "whole": "cutting.whole"})
    del graph.node[:]
    graph.node.extend([*before, *inner, *behind])
    for value, factor in ((graph.input[0], ""), (graph.output[0], f"{scale}*")):
        for axis, side in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{factor}{side}"


def _renamed(nodes: list[onnx.NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
