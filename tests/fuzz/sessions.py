"""Random damage to converted models, opened and run by ONNX Runtime as a user would.

A damaged model is refused with an error, or gives some answer; it never ends the process. Damage is
done to what the library reads: attributes, index tensors, scales, biases, and the file that holds
them as external data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnx_ternary
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import OP_TYPES
from tests.catalogue import HITS
from tests.fuzz.nodes import FIELDS, FLOATS, VARIANTS, damaged
from tests.support.gather_node import make_gather_model, packed_variants
from tests.support.single_node import make_model, make_node

Outcome = Literal["ran", "refused"]
Damage = Callable[[onnx.ModelProto, np.random.Generator], None]

DTYPES = ("float32", "float16", "bfloat16")
INDEX_TYPES = (TensorProto.INT64, TensorProto.INT32)
CONVERTED = ("matmul", "gemm_trans_b", "if_own_weights")
TENSOR_TYPES = (
    TensorProto.FLOAT,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.INT64,
    TensorProto.FLOAT16,
)


def base_models() -> list[onnx.ModelProto]:
    """One node of every variant and type, and whole models as the pass writes them."""
    rng = np.random.default_rng(0)
    models = []
    for at, attributes in enumerate(VARIANTS):
        node = make_node(rng, attributes, per_column=bool(at % 2))
        models.append(make_model(node, dtype=DTYPES[at % len(DTYPES)]))
    for at, attributes in enumerate(packed_variants(100, 13)):
        node = make_node(rng, attributes, per_column=bool(at % 2))
        types = {"dtype": DTYPES[at % len(DTYPES)], "index_type": INDEX_TYPES[at % 2]}
        models.append(make_gather_model(node, **types))
    options = (
        OptimizeOptions(min_elements=0),
        OptimizeOptions(min_elements=0, index_format="rsr"),
        OptimizeOptions(min_elements=0, storage="dense", activation="int8"),
    )
    models += [optimize(HITS[name]().model, o).to_proto() for name in CONVERTED for o in options]
    return models


def graphs_of(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and the bodies in it."""
    graphs = [model.graph]
    for graph in graphs:
        graphs += [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    return graphs


def op_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes = [node for graph in graphs_of(model) for node in graph.node]
    return [node for node in nodes if node.op_type in OP_TYPES]


def index_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    names = {name for node in op_nodes(model) for name in node.input[1:]}
    tensors = [tensor for graph in graphs_of(model) for tensor in graph.initializer]
    return [tensor for tensor in tensors if tensor.name in names]


def damage_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another value, another type, gone, or one that does not exist."""
    node = pick(op_nodes(model), rng)
    attribute = pick(list(node.attribute), rng)
    kind = rng.integers(6)
    if kind == 0:
        node.attribute.remove(attribute)
        return
    if kind == 1:
        node.attribute.append(helper.make_attribute("unknown", 1))
        return
    values = FIELDS.get(attribute.name, (0,))
    if kind == 2:
        values = pick(list(FIELDS.values()), rng)
    value = pick([each for each in values if each is not None], rng)
    replacement = helper.make_attribute(attribute.name, value)
    attribute.CopyFrom(replacement)


def damage_tensor(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Other bytes, another shape, fewer entries, or another element type."""
    tensors = index_tensors(model)
    if not tensors:
        return
    tensor = pick(tensors, rng)
    try:
        value = numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        return  # damaged before, beyond what onnx can read
    kind = rng.integers(6)
    if kind == 0:
        tensor.data_type = pick(TENSOR_TYPES, rng)
    elif kind == 1:
        # The shape says something else than the bytes.
        tensor.dims.append(int(pick((0, 1, 2, 2**31, 2**62), rng)))
    elif kind == 2 and tensor.raw_data:
        tensor.raw_data = tensor.raw_data[: rng.integers(len(tensor.raw_data))]
    elif kind == 3 and value.dtype == np.float32 and value.size:
        value = value.copy()
        value.reshape(-1)[rng.integers(value.size)] = pick(FLOATS, rng)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    else:
        tensor.CopyFrom(numpy_helper.from_array(damaged(value, rng), tensor.name))


def damage_wiring(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Inputs swapped, dropped or repeated; an initializer that is a graph input too."""
    node = pick(op_nodes(model), rng)
    if not index_tensors(model):
        return
    at, other = (int(each) for each in rng.integers(len(node.input), size=2))
    kind = rng.integers(4)
    if kind == 0:
        node.input[at], node.input[other] = node.input[other], node.input[at]
    elif kind == 1:
        del node.input[-1]
    elif kind == 2:
        node.input[at] = node.input[other]
    else:
        tensor = pick(index_tensors(model), rng)
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )


DAMAGES: tuple[Damage, ...] = (damage_attribute, damage_tensor, damage_wiring)


def pick(choices: Any, rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def save_external(model: onnx.ModelProto, path: Path, rng: np.random.Generator) -> None:
    """The tensors in a file of their own, whose places or length may be damaged."""
    data = path.with_suffix(".data")
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    kind = rng.integers(4)
    if kind == 0:
        return
    content = data.read_bytes() if data.exists() else b""
    if kind == 1:
        data.write_bytes(content[: rng.integers(len(content) + 1)])
        return
    stored = onnx.load(path, load_external_data=False)
    tensors = [each for each in stored.graph.initializer if each.external_data]
    if not tensors:
        return
    tensor = pick(tensors, rng)
    entry = pick([each for each in tensor.external_data if each.key != "location"], rng)
    if kind == 2:
        # Whatever lies there, at any alignment.
        entry.value = str(int(entry.value) + int(pick((1, 2, 3, -1), rng)))
    else:
        entry.value = str(int(pick((-1, 0, 2**31, 2**62, len(content)), rng)))
    path.write_bytes(stored.SerializeToString())


def try_model(model: onnx.ModelProto, rng: np.random.Generator) -> Outcome:
    """Damage a model in up to three ways, open it and run it twice.

    Args:
        model: a converted model; it is not changed.
        rng: chooses everything.
    """
    hurt = onnx.ModelProto()
    hurt.CopyFrom(model)
    for _ in range(rng.integers(3)):
        pick(DAMAGES, rng)(hurt, rng)
    options = onnx_ternary.register(ort.SessionOptions())
    options.log_severity_level = 4
    options.intra_op_num_threads = int(pick((1, 2), rng))
    options.graph_optimization_level = pick(
        (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL), rng
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            if rng.integers(3) == 0:
                save_external(hurt, path, rng)
            else:
                path.write_bytes(hurt.SerializeToString())
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS:
            return "refused"
        for rows in (int(pick((0, 1, 2), rng)), int(pick((5, 17, 70), rng))):
            feeds = {each.name: some_value(each, rows, rng) for each in session.get_inputs()}
            try:
                session.run(None, feeds)
            except ORT_ERRORS:
                return "refused"
    return "ran"


def some_value(value: ort.NodeArg, rows: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = [each if isinstance(each, int) else rows for each in value.shape]
    if value.type in ("tensor(int64)", "tensor(int32)"):
        largest = int(pick((12, 12, 13, 2**31 - 1), rng))
        drawn = rng.integers(-largest, largest, size=shape)
        return np.asarray(drawn, value.type.removeprefix("tensor(").removesuffix(")"))
    if value.shape and not isinstance(value.shape[-1], int):
        shape[-1] = 100
    if value.type == "tensor(bool)":
        return np.asarray(rng.integers(2, size=shape), bool)
    dtypes = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(uint32)": np.uint32}
    drawn = rng.standard_normal(shape) * float(pick((1, 1e-30, 1e30, 60), rng))
    with np.errstate(all="ignore"):
        return np.asarray(drawn.astype(dtypes.get(value.type, np.float32)))


# What ONNX Runtime raises for a model or input it does not accept, and onnx for one it cannot save.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(
        getattr(ort.capi.onnxruntime_pybind11_state, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile")
    ),
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
    ort.capi.onnxruntime_pybind11_state.NoModel,
    ValueError,
    TypeError,
)
