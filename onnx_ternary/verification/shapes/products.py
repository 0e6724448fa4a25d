"""Operators that multiply, and windows over images: matrix products, convolutions, pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_ternary.schema import OP_TYPE
from onnx_ternary.verification.shapes.facts import Shape
from onnx_ternary.verification.shapes.node import Handler, Node
from onnx_ternary.verification.shapes.sizes import Size

# Where the factors are among the inputs.
_MATRIX_PRODUCTS = {
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}


def _matrix_product(node: Node) -> None:
    left, right = _MATRIX_PRODUCTS[node.proto.op_type]
    x, w = node.shape(left), node.shape(right)
    if not x or not w:
        return
    if len(x) >= 2 and node.integer("transA", 0):
        x = (*x[:-2], x[-1], x[-2])
    if len(w) >= 2 and node.integer("transB", 0):
        w = (*w[:-2], w[-1], w[-2])
    node.equate(x[-1], w[-2] if len(w) > 1 else w[0])
    batch = node.broadcast_shapes((x[:-2], w[:-2]))
    node.set((*batch, *x[-2:-1], *(w[-1:] if len(w) > 1 else ())))


def _gemm(node: Node) -> None:
    a, b = node.shape(0), node.shape(1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return
    a = (a[1], a[0]) if node.integer("transA", 0) else a
    b = (b[1], b[0]) if node.integer("transB", 0) else b
    node.equate(a[1], b[0])
    node.set((a[0], b[1]))


def _packed_product(node: Node) -> None:
    """MatMulNBits and the op: K and N are attributes."""
    x, K, N = node.shape(0), node.integer("K", 0), node.integer("N", 0)
    if x and K > 0 and N > 0:
        node.equate(x[-1], Size(K))
        node.set((*x[:-1], Size(N)))


def _conv(node: Node) -> None:
    x = node.shape(0)
    w = node.shape(3 if node.proto.op_type == "QLinearConv" else 1)
    if not x or not w or len(x) != len(w) or len(x) < 3:
        return
    transposed = node.proto.op_type == "ConvTranspose"
    group = node.integer("group", 1)
    node.equate(x[1], w[0] if transposed else w[1].times(group))
    for size in x[2:]:
        for name in node.sizes.resolve(size).variables:
            node.found.roles.setdefault(name, "image")
    channels = w[1].times(group) if transposed else w[0]
    spatial = [Size(w[at].constant) for at in range(2, len(x))]
    moved = [node.sizes.fresh() for _ in spatial] if transposed else _windows(node, x, spatial)
    node.set((x[0], channels, *moved))


def _pool(node: Node) -> None:
    x = node.shape(0)
    kernel = [Size(size) for size in node.numbers(len(node.proto.input), "kernel_shape") or ()]
    if x and len(kernel) == len(x) - 2:
        node.set((*x[:2], *_windows(node, x, kernel)))


def _windows(node: Node, x: Shape, kernel: Sequence[Size]) -> list[Size]:
    """Spatial sizes behind a convolution or a pool; new variables where none is linear."""
    rank = len(kernel)
    strides = node.ints("strides") or [1] * rank
    dilations = node.ints("dilations") or [1] * rank
    pads = node.ints("pads") or [0] * (2 * rank)
    auto_pad = node.attributes["auto_pad"].s if "auto_pad" in node.attributes else b""
    if auto_pad not in (b"", b"NOTSET", b"VALID") or not (
        len(strides) == len(dilations) == rank and len(pads) == 2 * rank
    ):
        return [node.sizes.fresh() for _ in kernel]
    made = []
    for at, size in enumerate(kernel):
        room = node.sizes.resolve(x[2 + at]) + Size(pads[at] + pads[at + rank])
        room -= Size(dilations[at] * (size.constant - 1) + 1)
        if room.value is not None:
            made.append(Size(max(0, room.value) // max(1, strides[at]) + 1))
        elif strides[at] == 1:
            made.append(room + Size(1))
        else:
            made.append(node.sizes.fresh())
    return made


def _global_pool(node: Node) -> None:
    x = node.shape(0)
    node.set(x and (*x[:2], *(Size(1) for _ in x[2:])))


def _einsum(node: Node) -> None:
    equation = node.attributes["equation"].s.decode() if "equation" in node.attributes else ""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    letters: dict[str, Size] = {}
    rest: list[Shape] = []
    for at, term in enumerate(terms.split(",")):
        front, dots, back = term.partition("...")
        shape = node.shape(at)
        if shape is None or (len(shape) < len(front + back) if dots else len(shape) != len(term)):
            return
        end = len(shape) - len(back)
        for letter, size in zip(front + back, shape[: len(front)] + shape[end:], strict=True):
            if letter in letters:
                node.equate(letters[letter], size)
            else:
                letters[letter] = size
        rest.append(shape[len(front) : end])
    if arrow:
        front, dots, back = result.partition("...")
        many = node.broadcast_shapes(rest) if dots else ()
        named = [[letters.get(c) or node.sizes.fresh() for c in part] for part in (front, back)]
        node.set((*named[0], *many, *named[1]))


HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_MATRIX_PRODUCTS, _matrix_product),
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "MatMulNBits": _packed_product,
    OP_TYPE: _packed_product,
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "QLinearConv"), _conv),
    "ConvTranspose": _conv,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    "Einsum": _einsum,
}
