"""Whether a converted model gives the original's answers.

Each rewritten product is judged on its own, by the op's derived error bound: the original graph
runs with optimizations off and the product's input and output exposed, and the converted node runs
on that input. End to end, where no bound survives normalization and rounding, the differences of
the outputs are measured against stated tolerances.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_ternary import _onnxruntime as ort
from onnx_ternary import model_io, reference, runtime
from onnx_ternary._verify_inputs import Inputs, InputsError, verification_inputs
from onnx_ternary.errors import LibraryError, ModelError, OnnxTernaryError
from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.schema import DOMAIN, OP_TYPE, OpAttributes

__all__ = [
    "DEFAULT_TOLERANCES",
    "InputsError",
    "OutputCheck",
    "ProductCheck",
    "VerificationReport",
    "verify",
]

Model: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | ir.Model"
Progress: TypeAlias = Callable[[str, int, int], None]

# Largest difference of an output relative to its largest magnitude. Models with float16 products
# get that of float16, whatever their outputs are.
DEFAULT_TOLERANCES: Mapping[str, float] = {
    "float64": 1e-5,
    "float32": 1e-5,
    "float16": 1e-2,
}
# One rounding that falls the other way moves everything behind it, so outputs of models with
# quantized activations are reported without a verdict.
_ROUNDING_OPS = frozenset(
    ("Round", "QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "Floor", "Ceil")
)
# In front of a MatMul, or as one, optimized to a product of 8-bit activations.
_ROUNDED_WHEN_OPTIMIZED = frozenset(("DequantizeLinear", "MatMulNBits"))
# Products of integers, and which input is the weight's zero point; the weight is input 1.
_INTEGER_PRODUCTS = {"MatMulInteger": 3, "MatMulIntegerToFloat": 5, "DynamicQuantizeMatMul": 3}
# 2 * 255 * 64 fits in int16, twice that does not.
_LARGEST_UNSATURATED = 64

# Operations of the original behind its MatMul: alpha, scale, bias and their conversions.
_EXTRA_ROUNDINGS = 8
_COLUMNS_AT_ONCE = 1024
# Rows compared are cut where the bounds would take more multiplications than this (seconds).
_PRODUCT_WORK = 1 << 31
_MIN_ROWS = 16
_NUMPY_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True)
class ProductCheck:
    """One rewritten product.

    Attributes:
        node: name of the converted node, its output's where it has none.
        output: name of the value that was compared.
        shape: (K, N) of the weight.
        status: "passed", "failed", or "end to end only" where the original has no such value.
        dtype: of the activations; empty if the product was not judged on its own.
        compared_with: what the op's output was held against; empty if nothing was.
        reason: why the product was not judged on its own; empty if it was.
        rows: rows of X compared, evenly taken.
        probe_rows: sparse rows compared besides, which show a single wrong weight however long the
            sums are; 0 where the original's product cannot be run on its own.
        worst_is_probe: whether worst_index counts rows of the probe.
        max_abs_error: largest difference of a finite element.
        worst_error_over_bound: largest ratio of error and bound; above 1 fails.
        worst_index: (row, column) of that element.
        worst_expected: the value it should have.
        worst_found: the value it has.
        max_difference_from_original: largest difference from the original's product relative to
            its largest magnitude; where activations are quantized it is no error.
    """

    node: str
    output: str
    shape: tuple[int, int]
    status: Literal["passed", "failed", "end to end only"]
    dtype: str = ""
    compared_with: str = ""
    reason: str = ""
    rows: int = 0
    probe_rows: int = 0
    worst_is_probe: bool = False
    max_abs_error: float = 0.0
    worst_error_over_bound: float = 0.0
    worst_index: tuple[int, int] | None = None
    worst_expected: float = 0.0
    worst_found: float = 0.0
    max_difference_from_original: float = 0.0


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of the model, original against converted.

    Attributes:
        name: of the output.
        node: the converted graph's node that makes it.
        dtype: of the original's output.
        shape: of the original's output.
        max_abs_difference: largest difference; inf where only one is NaN or the shapes differ.
        max_relative_difference: the same divided by the original's largest magnitude.
        tolerance: for max_relative_difference; None where it is reported only.
        worst_index: where the largest difference is.
        top1_agreement: share of equal argmax along the last axis, for float outputs of rank >= 2.
        passed: whether it is within its tolerance.
    """

    name: str
    node: str
    dtype: str
    shape: tuple[int, ...]
    max_abs_difference: float
    max_relative_difference: float
    tolerance: float | None
    worst_index: tuple[int, ...] | None
    top1_agreement: float | None
    passed: bool


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What `verify` found.

    Attributes:
        products: one a TernaryIndexedMatMul node of the converted model's main graph and local
            functions; those of a function are judged on what its first call is given.
        outputs: one an output of the model.
        num_nested_products: converted nodes in subgraphs, covered end to end only.
        inputs: shape and dtype of each input used, "generated, seed 0: float32 (2, 64)".
        notes: what the reader has to know to read the numbers.
    """

    products: tuple[ProductCheck, ...]
    outputs: tuple[OutputCheck, ...]
    num_nested_products: int
    inputs: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def products_passed(self) -> bool:
        """Whether no product is outside its bound."""
        return all(product.status != "failed" for product in self.products)

    @property
    def outputs_passed(self) -> bool:
        """Whether every output that has a tolerance is within it."""
        return all(output.passed for output in self.outputs)

    @property
    def num_unjudged(self) -> int:
        """Products that were not compared on their own."""
        alone = sum(product.status == "end to end only" for product in self.products)
        return alone + self.num_nested_products

    @property
    def passed(self) -> bool:
        """Whether products and outputs passed."""
        return self.products_passed and self.outputs_passed

    @property
    def worst_product(self) -> ProductCheck | None:
        """The product closest to or farthest beyond its bound."""
        judged = [product for product in self.products if product.rows]
        return max(judged, key=lambda check: check.worst_error_over_bound, default=None)

    @property
    def worst_output(self) -> OutputCheck | None:
        """The output with the largest relative difference."""
        return max(self.outputs, key=lambda check: check.max_relative_difference, default=None)

    def summary(self) -> str:
        """The verdict in a sentence or two, naming the worst product and output."""
        judged = sum(product.status != "end to end only" for product in self.products)
        failed = sum(product.status == "failed" for product in self.products)
        parts = [f"{judged - failed} of {judged} products within their bounds"]
        product, output = self.worst_product, self.worst_output
        if product is not None:
            where = (
                f"probe {product.worst_index}" if product.worst_is_probe else product.worst_index
            )
            parts.append(
                f"worst: {product.node} at {where}, "
                f"{product.worst_error_over_bound:.3g} of its bound"
            )
        if output is not None:
            limit = "no tolerance" if output.tolerance is None else f"limit {output.tolerance:g}"
            parts.append(
                f"outputs differ by at most {output.max_relative_difference:.3g} relative "
                f"({limit}): {output.name} at {output.worst_index}, made by {output.node}"
            )
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON, which has no inf and NaN: these become strings."""
        return {
            "passed": self.passed,
            "products_passed": self.products_passed,
            "outputs_passed": self.outputs_passed,
            "products": [_for_json(product) for product in self.products],
            "outputs": [_for_json(output) for output in self.outputs],
            "num_nested_products": self.num_nested_products,
            "inputs": dict(self.inputs),
            "notes": list(self.notes),
        }


def _for_json(check: ProductCheck | OutputCheck) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in asdict(check).items()
    }


def verify(
    original: Model,
    converted: Model,
    *,
    inputs: Inputs | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    weight_tolerance: float = 0.0,
    max_rows: int = 256,
    max_exposed_bytes: int = 1 << 28,
    products_only: bool = False,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> VerificationReport:
    """Compares a converted model with its original, product by product and end to end.

    Memory grows with the original, unless ``products_only``.

    Args:
        original: the model before conversion: a path, a serialized model or a model in memory.
        converted: the model after it.
        inputs: arrays by input name, or an .npz file of them (other arrays in the file are
            ignored); None generates them.
        seed: of generated inputs.
        tolerance: largest difference of a float output relative to its largest magnitude. None
            takes DEFAULT_TOLERANCES, and gives no verdict on outputs of models that quantize
            activations or whose weights were changed (`weight_tolerance`).
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale.
        max_rows: rows a product is compared on at most, fewer where it is large; all are run.
        max_exposed_bytes: intermediate values held at once, roughly.
        products_only: run each product alone, on random activations, and no whole model: memory is
            that of the largest product, where float weights are external data. Outputs are not
            compared. A product that cannot be taken out of the original has no verdict; one that
            can but does not run has failed.
        custom_op_libraries: other libraries whose operators the models use, as
            `runtime.find_library` takes them.
        progress: called with the product's name, its number and how many there are.

    Returns:
        The report; a difference is not an error, look at `passed`.

    Raises:
        ModelError: if a model cannot be read or run.
        InputsError: if `inputs` do not fit the original's inputs, or are given where none are used.
        LibraryError: if the library is missing or onnxruntime is too old.
        IndexFormatError: if a converted node's index breaks its format.
    """
    libraries = tuple(map(runtime.find_library, custom_op_libraries))
    before = _Loaded.load(original, "original", libraries)
    after = _Loaded.load(converted, "converted", libraries)
    notes: list[str] = []
    if products_only:
        if inputs is not None:
            raise InputsError("Products are compared alone, on random activations: give no inputs.")
        return _verify_products(before, after, seed, weight_tolerance, max_rows, progress)
    feeds, used = verification_inputs(before.proto, inputs, seed, before.refusal)
    exact, num_rounding = _with_float_sums(before)
    exact = _with_unsigned_weights(exact)
    scopes = _scopes(exact.proto, after.proto)
    nodes = [node for scope in scopes for node in scope.products]
    num_nested = _num_nested(after, scopes)
    if num_nested:
        notes.append(f"{num_nested} products in subgraphs are covered end to end only")

    output_names = [value.name for value in before.proto.graph.output]
    expected = before.run(feeds, output_names, optimized=False)
    # As users run it, unless onnxruntime then rounds activations of products that stayed.
    kept_codes = any(
        node.op_type in _ROUNDED_WHEN_OPTIMIZED
        for node in (*after.proto.graph.node, *_nested_nodes(after.proto))
    )
    found = after.run(
        feeds, [value.name for value in after.proto.graph.output], optimized=not kept_codes
    )
    products = _check_products(
        exact,
        after,
        scopes,
        feeds,
        weight_tolerance=weight_tolerance,
        max_rows=max_rows,
        max_exposed_bytes=max_exposed_bytes,
        progress=progress,
    )

    if num_rounding:
        notes.append(
            f"{num_rounding} MatMulNBits nodes of the original may round their inputs to int8 "
            "(accuracy_level = 4): the products are compared with what onnxruntime computes in "
            "float32 (accuracy_level = 1) from the same weights"
        )
    requantised = _blockwise_products(after.proto) - _blockwise_products(before.proto)
    if requantised:
        notes.append(
            f"{len(requantised)} products were quantized by onnxruntime (--remaining), so the "
            "outputs are reported without a verdict"
        )
    quantizes = (
        num_rounding > 0
        or bool(requantised)
        or any(_attributes(node).activation != "float" for node in nodes)
        or any(
            node.op_type in _ROUNDING_OPS
            for node in (*before.proto.graph.node, *_nested_nodes(before.proto))
        )
    )
    if quantizes:
        notes.append(
            "activations are quantized or rounded: a value that rounds the other way moves the "
            "outputs far more than the products' errors"
        )
    if weight_tolerance:
        notes.append(
            f"weights were changed by up to {weight_tolerance:g} of their scale, so the outputs "
            "are reported without a verdict"
        )
    if any(check.compared_with.startswith("numpy") for check in products):
        notes.append(
            "products with quantized activations are held against the numpy reference of the "
            "quantization rule, on the original's inputs, and against the original's product where "
            "the original quantizes by itself"
        )
    unjudged = num_nested + sum(check.status == "end to end only" for check in products)
    if unjudged and tolerance is None and (quantizes or weight_tolerance):
        notes.append(
            f"{unjudged} products have no verdict: neither they nor the outputs behind them can be "
            "held to a bound"
        )
    makers = {
        name: node.name or node.op_type for node in after.proto.graph.node for name in node.output
    }
    half = any(check.dtype == "float16" for check in products)
    outputs = []
    for name in output_names:
        if name not in found:
            raise ModelError(
                f"The converted model has no output '{name}', which the original has; convert the "
                "model again with 'onnx-ternary optimize'."
            )
        limit = tolerance
        if limit is None and not quantizes and not weight_tolerance:
            coarsest = "float16" if half else expected[name].dtype.name
            limit = DEFAULT_TOLERANCES.get(coarsest)
        outputs.append(
            _check_output(name, makers.get(name, ""), expected[name], found[name], limit)
        )
    return VerificationReport(tuple(products), tuple(outputs), num_nested, used, tuple(notes))


def _verify_products(
    before: _Loaded,
    after: _Loaded,
    seed: int,
    weight_tolerance: float,
    max_rows: int,
    progress: Progress | None,
) -> VerificationReport:
    """Each product alone, on random activations."""
    exact = _with_unsigned_weights(_with_float_sums(before)[0])
    scopes = _scopes(exact.proto, after.proto)
    total = sum(len(scope.products) for scope in scopes)
    rng = np.random.default_rng(seed)
    checks: list[ProductCheck] = []
    for scope in scopes:
        nodes = scope.products
        places = _places(scope.after, nodes, scope.known)
        for node in nodes:
            if progress is not None:
                progress(_node_name(node), len(checks) + 1, total)
            place, attributes = places[id(node)], _attributes(node)
            between = f"the original's nodes from '{place.source}' to '{place.target}'"
            named = (_node_name(node), node.output[0], (attributes.K, attributes.N))
            if _original_product(scope.before, place) is None:
                reason = f"{between} cannot be taken out alone"
                checks.append(ProductCheck(*named, "end to end only", reason=reason))
                continue
            try:
                pair = _alone(exact, scope.before, place, attributes.K, rng)
            except ModelError as error:
                reason = f"{between} do not run on (M, {attributes.K}): {error}"
                checks.append(ProductCheck(*named, "failed", reason=reason))
                continue
            checks.append(
                _check_product(exact, after, scope, node, place, *pair, weight_tolerance, max_rows)
            )
    notes = ("each product ran alone, on random activations; outputs were not compared",)
    return VerificationReport(tuple(checks), (), _num_nested(after, scopes), {}, notes)


def _alone(
    before: _Loaded, graph: GraphProto, place: _Place, K: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random numbers and what the original's product makes of them, as its source and target.

    Raises:
        ModelError: if the product does not run on any form of them.
    """
    failure = ModelError("its outputs have another type than its inputs")
    values = rng.standard_normal((_MIN_ROWS, K))
    perm = place.perm_x or place.perm_y
    ranks = (2, 3, 4, 1) if perm is None else (len(perm),)
    for dtype in (np.float32, np.float16):
        for rank in ranks:
            rows = values if rank > 1 else values[0]
            x = rows.astype(dtype).reshape((1,) * (rank - 2) + rows.shape)
            try:
                y = _product_of(before, graph, place, x)
            except ModelError as error:
                failure = error
                continue
            if y is not None and y.dtype == x.dtype:
                return place.source_of(x), place.target_of(y)
    raise failure


def _num_nested(after: _Loaded, scopes: Sequence[_Scope]) -> int:
    """Products in subgraphs, and in functions that the original does not have."""
    return sum(map(_is_product, _nested_nodes(after.proto))) - sum(
        len(scope.products) for scope in scopes if scope.function
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model whose external tensors stay in their files.

    `path` is None for a model that was given in memory.
    """

    proto: ModelProto
    path: Path | None
    role: str
    libraries: tuple[str, ...]

    @classmethod
    def load(cls, model: Model, role: str, libraries: tuple[str, ...]) -> _Loaded:
        if isinstance(model, ModelProto):
            return cls(model, None, role, libraries)
        if isinstance(model, ir.Model):
            return cls(model_io.to_proto(model), None, role, libraries)
        if isinstance(model, bytes):
            proto = model_io.to_proto(model_io.from_bytes(model, f"{role} model"))
            return cls(proto, None, role, libraries)
        path = Path(model)
        try:
            return cls(onnx.load(path, load_external_data=False), path, role, libraries)
        except OSError as error:
            raise ModelError(f"The {role} model {path} cannot be read: {error}.") from error
        except Exception as error:  # protobuf's and onnx's decoding errors share no base
            raise ModelError(
                f"The {role} model {path} is not a readable ONNX model: {error}."
            ) from error

    @property
    def name(self) -> str:
        return f"{self.role} model" if self.path is None else f"{self.role} model {self.path}"

    @property
    def base_dir(self) -> str:
        return "" if self.path is None else str(self.path.parent.resolve())

    def session(self, proto: ModelProto | None, *, optimized: bool) -> ort.InferenceSession:
        """A session of the model, or of an edited copy of its proto.

        Raises:
            ModelError: if onnxruntime refuses it.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4
        runtime.register_libraries(options, self.libraries)
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        )
        try:
            if proto is None and self.path is not None:
                return runtime.InferenceSession(str(self.path), options)
            proto = self.proto if proto is None else proto
            if not _has_external_data(proto):
                return runtime.InferenceSession(proto.SerializeToString(), options)
            return self._session_with_external_data(proto, options)
        except OnnxTernaryError:
            raise
        except Exception as error:  # onnxruntime raises types of its own that share no base
            raise self._error("load", error) from error

    def _session_with_external_data(
        self, proto: ModelProto, options: ort.SessionOptions
    ) -> ort.InferenceSession:
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, self.base_dir)
        try:
            return runtime.InferenceSession(proto.SerializeToString(), options)
        except LibraryError:
            raise
        except Exception:  # onnxruntime below 1.21 does not know the entry
            whole = ModelProto()
            whole.CopyFrom(proto)
            onnx.load_external_data_for_model(whole, self.base_dir)
            return runtime.InferenceSession(whole.SerializeToString(), options)

    def run(
        self, feeds: Mapping[str, NDArray[Any]], names: Sequence[str], *, optimized: bool
    ) -> dict[str, NDArray[Any]]:
        """Outputs by name.

        Raises:
            ModelError: if onnxruntime cannot load or run the model.
        """
        return self.run_session(self.session(None, optimized=optimized), feeds, names)

    def run_session(
        self,
        session: ort.InferenceSession,
        feeds: Mapping[str, NDArray[Any]],
        names: Sequence[str],
    ) -> dict[str, NDArray[Any]]:
        try:
            results = session.run(list(names), dict(feeds))
        except Exception as error:  # onnxruntime raises types of its own that share no base
            raise self._error("run", error) from error
        for name, result in zip(names, results, strict=True):
            if not isinstance(result, np.ndarray):
                raise ModelError(
                    f"Output '{name}' of the {self.name} is not a tensor; verification compares "
                    "tensors only."
                )
        return dict(zip(names, results, strict=True))

    def refusal(
        self, attempts: Sequence[Mapping[str, NDArray[Any]]]
    ) -> Iterator[ModelError | None]:
        """Why the model does not run on each of these inputs, one at a time."""
        session = self.session(None, optimized=False)
        names = [output.name for output in session.get_outputs()]
        for feeds in attempts:
            yield self._refusal(session, feeds, names)

    def _refusal(
        self,
        session: ort.InferenceSession,
        feeds: Mapping[str, NDArray[Any]],
        names: Sequence[str],
    ) -> ModelError | None:
        try:
            self.run_session(session, feeds, names)
        except ModelError as error:
            return error
        return None

    def _error(self, action: str, error: Exception) -> ModelError:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = (
            "check it with onnx.checker.check_model, and that its operators exist in "
            f"onnxruntime {ort.__version__} on CPU; operators of another library need --library "
            "(custom_op_libraries)"
            if self.role == "original"
            else "convert it again with 'onnx-ternary optimize'"
        )
        return ModelError(f"onnxruntime cannot {action} the {self.name}: {first_line}; {advice}.")

    def constants(self, graph: GraphProto, names: Sequence[str], node: str) -> list[NDArray[Any]]:
        """Constant inputs of a converted node of ``graph``.

        Raises:
            ModelError: if one is not an initializer or its data file is missing.
        """
        by_name = {tensor.name: tensor for tensor in graph.initializer}
        by_name.update(
            (each.output[0], attribute.t)
            for each in graph.node
            if each.op_type == "Constant" and each.domain == ""
            for attribute in each.attribute
            if attribute.name == "value"
        )
        arrays = []
        for name in names:
            if name not in by_name:
                raise ModelError(
                    f"{OP_TYPE} '{node}': input '{name}' is not an initializer of the {self.name}; "
                    "convert the model again with 'onnx-ternary optimize'."
                )
            try:
                arrays.append(numpy_helper.to_array(by_name[name], self.base_dir))
            except Exception as error:  # onnx raises a type of its own for unreadable files
                raise ModelError(
                    f"{OP_TYPE} '{node}': initializer '{name}' of the {self.name} cannot be read: "
                    f"{error}."
                ) from error
        return arrays


def _has_external_data(proto: ModelProto) -> bool:
    tensors = [*proto.graph.initializer]
    tensors += [
        attribute.t
        for node in (*proto.graph.node, *_nested_nodes(proto))
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors)


def _is_product(node: NodeProto) -> bool:
    return node.op_type == OP_TYPE and node.domain == DOMAIN


def _blockwise_products(model: ModelProto) -> set[str]:
    """What MatMulNBits nodes produce."""
    return {
        node.output[0]
        for node in model.graph.node
        if (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")
    }


def _nested_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes of subgraphs and of functions other than the op's own body."""
    yield from _subgraph_nodes(model.graph.node)
    for function in model.functions:
        if (function.domain, function.name) != (DOMAIN, OP_TYPE):
            yield from function.node
            yield from _subgraph_nodes(function.node)


def _subgraph_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        for attribute in node.attribute:
            graphs: list[GraphProto] = [*attribute.graphs]
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            for graph in graphs:
                yield from graph.node
                yield from _subgraph_nodes(graph.node)


# Domain, name and overload of a local function.
_FunctionKey: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where products stand: the main graph, or a local function seen as a graph.

    Attributes:
        before: the original's.
        after: the converted model's.
        function: which function; None for the main graph.
    """

    before: GraphProto
    after: GraphProto
    function: _FunctionKey | None = None

    @property
    def products(self) -> list[NodeProto]:
        """Those of its own nodes, subgraphs apart."""
        return [node for node in self.after.node if _is_product(node)]

    @property
    def known(self) -> set[str]:
        """Names of the original's values."""
        names = {value.name for value in self.before.input}
        names.update(tensor.name for tensor in self.before.initializer)
        names.update(name for node in self.before.node for name in node.output if name)
        return names


def _scopes(before: ModelProto, after: ModelProto) -> list[_Scope]:
    """The main graph, and the local functions with products that both models have."""
    originals = {_function_key(function): function for function in before.functions}
    scopes = [_Scope(before.graph, after.graph)]
    for function in after.functions:
        key = _function_key(function)
        # The op's own body holds no product.
        if key in originals and any(map(_is_product, function.node)):
            scopes.append(_Scope(_as_graph(originals[key]), _as_graph(function), key))
    return scopes


def _function_key(function: FunctionProto) -> _FunctionKey:
    return function.domain, function.name, function.overload


def _as_graph(function: FunctionProto) -> GraphProto:
    return GraphProto(
        name=function.name,
        node=function.node,
        input=[onnx.ValueInfoProto(name=name) for name in function.input],
        output=[onnx.ValueInfoProto(name=name) for name in function.output],
    )


def _expose_in_function(
    proto: ModelProto, key: _FunctionKey, names: Sequence[str]
) -> dict[str, str]:
    """Makes values of one call of a local function outputs of the main graph.

    Every call gets the function's new outputs; those of the first one that is no subgraph's are
    handed on, through other functions if need be.

    Returns:
        The names the values have in the main graph; none where only subgraphs call the function.
    """
    functions = {_function_key(function): function for function in proto.functions}
    values = list(names)
    while True:
        function = functions[key]
        num_outputs = len(function.output)
        exposed = [f"{value}/exposed{at}" for at, value in enumerate(values)]
        function.node.extend(map(_identity, values, exposed))
        function.output.extend(exposed)
        if "" not in {each.domain for each in function.opset_import}:
            function.opset_import.extend(each for each in proto.opset_import if not each.domain)
        handed: tuple[_FunctionKey | None, list[str]] | None = None
        callers: list[tuple[_FunctionKey | None, Sequence[NodeProto]]] = [(None, proto.graph.node)]
        callers += [(caller, each.node) for caller, each in functions.items()]
        for caller, nodes in callers:
            own = len(nodes)
            for number, node in enumerate((*nodes, *_subgraph_nodes(nodes))):
                if (node.domain, node.op_type, node.overload) != key:
                    continue
                outputs = [f"{name}/call{number}" for name in exposed]
                node.output.extend([""] * (num_outputs - len(node.output)) + outputs)
                if handed is None and number < own:
                    handed = caller, outputs
        if handed is None:
            return {}
        caller, values = handed
        if caller is None:
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
            return dict(zip(names, values, strict=True))
        key = caller


def _identity(value: str, output: str) -> NodeProto:
    return helper.make_node("Identity", [value], [output])


def _attributes(node: NodeProto) -> OpAttributes:
    """The node's attributes.

    Raises:
        IndexFormatError: if they break the rules of docs/op_spec.md.
    """
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values: dict[str, Any] = {
        name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()
    }
    return OpAttributes.read(values, _node_name(node))


def _with_float_sums(model: _Loaded) -> tuple[_Loaded, int]:
    """The model with MatMulNBits in float32, and how many were free to round their inputs.

    With accuracy_level 4 onnxruntime rounds them to int8, each block of each row by itself, which
    costs a hundred times a product's bound.
    """

    def rounding(proto: ModelProto) -> list[onnx.AttributeProto]:
        return [
            attribute
            for node in (*proto.graph.node, *_nested_nodes(proto))
            if node.domain == "com.microsoft" and node.op_type == "MatMulNBits"
            for attribute in node.attribute
            if attribute.name == "accuracy_level" and attribute.i == 4
        ]

    if not rounding(model.proto):
        return model, 0
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    changed = rounding(proto)
    for attribute in changed:
        attribute.i = 1
    return replace(model, proto=proto), len(changed)


def _with_unsigned_weights(model: _Loaded) -> _Loaded:
    """The model with large int8 weights of integer products as uint8, 128 added to code and zero.

    On processors with AVX2 but without VNNI onnxruntime multiplies uint8 activations by int8
    weights in pairs that saturate at int16; by uint8 weights its sums are exact.
    """
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}

    def int8(name: str) -> bool:
        return name in stored and stored[name].data_type == TensorProto.INT8

    products = [
        node
        for node in model.proto.graph.node
        if node.op_type in _INTEGER_PRODUCTS and int8(node.input[1])
    ]
    large = {
        name
        for name in {node.input[1] for node in products}
        if np.abs(model.constants(model.proto.graph, [name], name)[0].astype(np.int16)).max(
            initial=0
        )
        > _LARGEST_UNSATURATED
    }
    if not large:
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    moved: dict[str, str] = {}
    taken = {*stored, *(value.name for value in proto.graph.input)}
    taken.update(name for node in proto.graph.node for name in node.output)

    def unsigned(name: str) -> str:
        """The tensor moved by 128; without a name, the zero point of 0."""
        if name not in moved:
            old = np.zeros((), np.int8)
            if name:
                old = model.constants(model.proto.graph, [name], name)[0]
            codes = (old.astype(np.int16) + 128).astype(np.uint8)
            fresh = f"{name}.unsigned"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            moved[name] = fresh
            proto.graph.initializer.append(numpy_helper.from_array(codes, fresh))
        return moved[name]

    for node in proto.graph.node:
        if node.op_type not in _INTEGER_PRODUCTS or node.input[1] not in large:
            continue
        at = _INTEGER_PRODUCTS[node.op_type]
        node.input.extend([""] * (at + 1 - len(node.input)))
        if node.input[at] and not int8(node.input[at]):
            continue
        node.input[1], node.input[at] = unsigned(node.input[1]), unsigned(node.input[at])
    return replace(model, proto=proto)


def _check_products(
    before: _Loaded,
    after: _Loaded,
    scopes: Sequence[_Scope],
    feeds: Mapping[str, NDArray[Any]],
    *,
    weight_tolerance: float,
    max_rows: int,
    max_exposed_bytes: int,
    progress: Progress | None,
) -> list[ProductCheck]:
    rows = max(map(_num_rows, feeds.values()), default=1)
    total = sum(len(scope.products) for scope in scopes)
    checks: list[ProductCheck] = []
    batches = (
        (scope, batch)
        for scope in scopes
        for batch in _batches(scope.products, rows, max_exposed_bytes)
    )
    for scope, batch in batches:
        known = scope.known
        places = _places(scope.after, batch, known)
        names = dict.fromkeys(
            name
            for node in batch
            for name in (places[id(node)].source, places[id(node)].target)
            if name in known
        )
        values = {} if scope.function else dict(feeds)
        wanted = [name for name in names if name not in values]
        values.update(_run_exposed(before, scope.function, feeds, wanted))
        for node in batch:
            if progress is not None:
                progress(_node_name(node), len(checks) + 1, total)
            place = places[id(node)]
            missing = [n for n in (place.source, place.target) if n not in values]
            if missing:
                attributes = _attributes(node)
                checks.append(
                    ProductCheck(
                        _node_name(node),
                        node.output[0],
                        (attributes.K, attributes.N),
                        "end to end only",
                        reason=(
                            f"local function {scope.function[0]}::{scope.function[1]} is called in "
                            "subgraphs only"
                            if scope.function and missing[0] in known
                            else f"the original has no tensor '{missing[0]}' to compare with"
                        ),
                    )
                )
                continue
            x, y = values[place.source], values[place.target]
            checks.append(
                _check_product(before, after, scope, node, place, x, y, weight_tolerance, max_rows)
            )
    return checks


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a converted node stands in the original.

    Attributes:
        source: the original's value that leads to X.
        target: the original's value that Y leads to.
        perm_x: of the Transpose from source to X; None if they are the same.
        perm_y: of the Transpose from Y to target; None if they are the same.
    """

    source: str
    target: str
    perm_x: tuple[int, ...] | None = None
    perm_y: tuple[int, ...] | None = None

    def x_of(self, source: NDArray[Any]) -> NDArray[Any]:
        """X as the converted node gets it."""
        return _transposed(source, self.perm_x)

    def source_of(self, x: NDArray[Any]) -> NDArray[Any]:
        """What X comes from."""
        return _transposed(x, None if self.perm_x is None else _inverse(self.perm_x))

    def y_of(self, target: NDArray[Any]) -> NDArray[Any]:
        """Y as the converted node should give it."""
        return _transposed(target, None if self.perm_y is None else _inverse(self.perm_y))

    def target_of(self, y: NDArray[Any]) -> NDArray[Any]:
        """What Y leads to."""
        return _transposed(y, self.perm_y)


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(perm.index(axis) for axis in range(len(perm)))


def _transposed(array: NDArray[Any], perm: tuple[int, ...] | None) -> NDArray[Any]:
    if perm is None or len(perm) != array.ndim:
        return array
    return np.ascontiguousarray(array.transpose(perm))


def _places(graph: GraphProto, nodes: Sequence[NodeProto], known: set[str]) -> dict[int, _Place]:
    """Where nodes stand, by their id; conversion leaves at most a Transpose on either side."""
    transposes = [node for node in graph.node if node.op_type == "Transpose" and node.domain == ""]
    before = {node.output[0]: node for node in transposes}
    behind = {node.input[0]: node for node in transposes}
    places: dict[int, _Place] = {}
    for node in nodes:
        source, target = node.input[0], node.output[0]
        perms: list[tuple[int, ...] | None] = [None, None]
        if source not in known and source in before:
            perms[0], source = _perm(before[source]), before[source].input[0]
        if target not in known and target in behind:
            perms[1], target = _perm(behind[target]), behind[target].output[0]
        places[id(node)] = _Place(source, target, *perms)
    return places


def _perm(node: NodeProto) -> tuple[int, ...]:
    return tuple(axis for each in node.attribute if each.name == "perm" for axis in each.ints)


def _node_name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _num_rows(feed: NDArray[Any]) -> int:
    """Rows of X this input may lead to: one a character, a token or a vector."""
    if feed.dtype.kind in "OSU":
        return sum(map(len, feed.flat))
    return int(feed.size if feed.dtype.kind in "iu" else np.prod(feed.shape[:-1]))


def _batches(
    nodes: Sequence[NodeProto], rows: int, max_bytes: int
) -> Iterator[Sequence[NodeProto]]:
    """Runs of nodes whose inputs and outputs take about max_bytes together, one node at least."""
    batch: list[NodeProto] = []
    num_bytes = 0
    for node in nodes:
        attributes = _attributes(node)
        needed = 4 * max(rows, 1) * (attributes.K + attributes.N)
        if batch and num_bytes + needed > max_bytes:
            yield batch
            batch, num_bytes = [], 0
        batch.append(node)
        num_bytes += needed
    if batch:
        yield batch


def _run_exposed(
    model: _Loaded,
    function: _FunctionKey | None,
    feeds: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Inner values of a model, or of a function's call, by name: those numpy has a type for."""
    if not names:
        return {}
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    if function is None:
        shown = {name: name for name in names}
        outputs = {value.name for value in proto.graph.output}
        proto.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in outputs
        )
    else:
        shown = _expose_in_function(proto, function, names)
        if not shown:
            return {}
    session = model.session(proto, optimized=False)
    types = {output.name: output.type for output in session.get_outputs()}
    readable = [name for name in shown if types[shown[name]] in _NUMPY_TYPES]
    values = model.run_session(session, feeds, [shown[name] for name in readable])
    return {name: values[shown[name]] for name in readable}


# Nonzero inputs of a probe row. A bound grows with them and with the length of the sums, a wrong
# weight moves the result by at least its scale: 64 suffice up to K = 100000 and more.
_PROBE_NONZEROS = 64


def _probe(K: int, rank: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Rows (1, .., R, K) that hold each input once, magnitudes in [1, 2); None for rank 1."""
    if rank < 2:
        return None
    num_rows = -(-K // _PROBE_NONZEROS)
    rng = np.random.default_rng(0)
    values = (1 + rng.random(K)) * rng.choice((-1, 1), K)
    probe = np.zeros((num_rows, K), dtype)
    probe[np.arange(K) % num_rows, np.arange(K)] = values
    shaped: NDArray[Any] = probe.reshape((1,) * (rank - 2) + probe.shape)
    return shaped


@dataclass(frozen=True, slots=True)
class _OriginalProduct:
    """The original's nodes between a product's input and output, and their constants."""

    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto]

    @property
    def op_types(self) -> set[str]:
        return {node.op_type for node in self.nodes}


def _original_product(graph: GraphProto, place: _Place) -> _OriginalProduct | None:
    """None where they take more than constants and the product's input, or have subgraphs."""
    source, target = place.source, place.target
    makers = {name: maker for maker in graph.node for name in maker.output if name}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    needed: set[str] = set()
    constants: dict[str, TensorProto] = {}
    open_names = [target]
    while open_names:
        name = open_names.pop()
        if name in ("", source) or name in needed or name in constants:
            continue
        if name in initializers:
            constants[name] = initializers[name]
            continue
        maker = makers.get(name)
        if maker is None or any(_has_graph(attribute) for attribute in maker.attribute):
            return None
        needed.update(maker.output)
        open_names.extend(maker.input)
    nodes = [maker for maker in graph.node if any(name in needed for name in maker.output)]
    return _OriginalProduct(nodes, list(constants.values()))


def _run_original_product(
    before: _Loaded, graph: GraphProto, place: _Place, probe: NDArray[Any]
) -> NDArray[Any] | None:
    """The original's product on another X; None where it does not stand alone or for its shape."""
    try:
        return _product_of(before, graph, place, probe)
    except ModelError:
        return None


def _product_of(
    before: _Loaded, graph: GraphProto, place: _Place, probe: NDArray[Any]
) -> NDArray[Any] | None:
    """The original's product on another X; None where it does not stand alone.

    Raises:
        ModelError: if it does not run, on X of this shape and type or at all.
    """
    source, target = place.source, place.target
    x = place.source_of(probe)
    product = _original_product(graph, place)
    if product is None:
        return None
    alone = ModelProto()
    alone.ir_version = before.proto.ir_version
    alone.opset_import.extend(before.proto.opset_import)
    alone.functions.extend(before.proto.functions)
    alone.graph.name = "product"
    alone.graph.node.extend(product.nodes)
    alone.graph.initializer.extend(product.constants)
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    alone.graph.input.append(helper.make_tensor_value_info(source, dtype, x.shape))
    alone.graph.output.append(onnx.ValueInfoProto(name=target))
    session = before.session(alone, optimized=False)
    result: NDArray[Any] = before.run_session(session, {source: x}, [target])[target]
    return place.y_of(result)


def _original_op_types(before: _Loaded, graph: GraphProto, place: _Place) -> frozenset[str]:
    """Operators between the original's values, those inside called functions included."""
    product = _original_product(graph, place)
    functions = {(each.domain, each.name): each for each in before.proto.functions}
    found: set[str] = set()
    waiting = [] if product is None else list(product.nodes)
    while waiting:
        node = waiting.pop()
        found.add(node.op_type)
        called = functions.pop((node.domain, node.op_type), None)
        waiting.extend(() if called is None else called.node)
    return frozenset(found)


def _has_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.HasField("g") or len(attribute.graphs) > 0


def _check_product(
    before: _Loaded,
    after: _Loaded,
    scope: _Scope,
    node: NodeProto,
    place: _Place,
    x: NDArray[Any],
    y: NDArray[Any],
    weight_tolerance: float,
    max_rows: int,
) -> ProductCheck:
    x, y = place.x_of(x), place.y_of(y)
    attributes = _attributes(node)
    K, N = attributes.K, attributes.N
    name = _node_name(node)
    tensors = after.constants(scope.after, node.input[1:], name)
    codes, aux, scale, bias = tensors
    validate_index(attributes, codes, aux, scale, bias, node=name)

    def failed(reason: str) -> ProductCheck:
        return ProductCheck(name, node.output[0], (K, N), "failed", reason=reason)

    if x.ndim == 0 or x.shape[-1] != K or y.shape != (*x.shape[:-1], N):
        return failed(
            f"the original multiplies {x.shape} to {y.shape}, the converted node takes (..., {K}) "
            f"to (..., {N})"
        )
    if x.dtype != y.dtype or x.dtype not in (np.float32, np.float16):
        return failed(
            f"the original has dtypes {x.dtype} and {y.dtype}, expected float32 or float16"
        )
    if x.dtype == np.float16:
        # ONNX Runtime computes around float16 operators it lacks in float32, and may hand the
        # product an x that was never rounded; on its own the product gets the x seen here.
        alone = _run_original_product(before, scope.before, place, x)
        y = y if alone is None else alone
    session = _node_session(after, node, tensors, x.dtype)
    found = after.run_session(session, {"X": x}, ["Y"])["Y"]
    num_rows = x.size // K
    num_chosen = min(num_rows, max_rows, max(_MIN_ROWS, _PRODUCT_WORK // (K * N)))
    chosen = np.unique(np.linspace(0, num_rows - 1, num_chosen).round().astype(int))
    rows = x.reshape(-1, K)[chosen]
    found, y = found.reshape(-1, N)[chosen], y.reshape(-1, N)[chosen]
    levels = decode_index(attributes, codes, aux, node=name)
    integer = attributes.activation != "float"
    op_types = _original_op_types(before, scope.before, place) if integer else frozenset()
    rounds, exact_sums = bool(op_types & _ROUNDING_OPS), bool(op_types & _INTEGER_PRODUCTS.keys())
    quantized = _QuantizedRows.of(x.reshape(-1, K), chosen, attributes) if integer else None
    compared = [_ComparedRows(rows, found, y, quantized)]
    num_probes = 0
    probe = _probe(K, x.ndim, x.dtype)
    probed = None if probe is None else _run_original_product(before, scope.before, place, probe)
    if probe is not None and probed is not None and probed.shape == (*probe.shape[:-1], N):
        rows, probed = probe.reshape(-1, K), probed.reshape(-1, N)
        num_probes = len(rows)
        answered, quantized = None, None
        # A float original shows the weights, whatever rule the op was asked to follow.
        if rounds or not integer:
            answered = after.run_session(session, {"X": probe}, ["Y"])["Y"].reshape(-1, N)
        if rounds:
            quantized = _QuantizedRows.of(rows, np.arange(num_probes), attributes)
        compared.append(_ComparedRows(rows, answered, probed, quantized))
    row_names = [*chosen, *range(num_probes)]

    worst_ratio, max_error, difference, is_probe = 0.0, 0.0, 0.0, False
    worst: tuple[tuple[int, int] | None, float, float] = (None, 0.0, 0.0)
    for start in range(0, N, _COLUMNS_AT_ONCE):
        columns = slice(start, min(N, start + _COLUMNS_AT_ONCE))
        part = _Columns(
            attributes,
            levels[:, columns],
            scale[..., columns] if scale.ndim else scale,
            bias[columns] if bias.ndim else bias,
        )
        judged = [
            each.judge(part, columns, rounds, exact_sums, weight_tolerance) for each in compared
        ]
        values, originals, wanted, error, ratio = map(np.concatenate, zip(*judged, strict=True))
        with np.errstate(invalid="ignore"):
            gap = np.abs(values - originals)
        difference = max(difference, float(np.max(gap, initial=0, where=np.isfinite(gap))))
        max_error = max(max_error, float(np.max(error, initial=0, where=np.isfinite(error))))
        if ratio.size and (ratio.max() > worst_ratio or worst[0] is None):
            row, column = np.unravel_index(np.argmax(ratio), ratio.shape)
            worst_ratio = float(ratio[row, column])
            is_probe = bool(row >= len(chosen))
            worst = (
                (int(row_names[row]), start + int(column)),
                float(wanted[row, column]),
                float(values[row, column]),
            )
    return ProductCheck(
        node=name,
        output=node.output[0],
        shape=(K, N),
        status="passed" if worst_ratio <= 1 else "failed",
        dtype=x.dtype.name,
        compared_with=(
            "original product"
            if not integer
            else f"numpy reference of the {attributes.activation} rule"
            + (" and original product" if rounds else "")
        ),
        rows=len(chosen),
        probe_rows=num_probes,
        worst_is_probe=is_probe,
        max_abs_error=max_error,
        worst_error_over_bound=worst_ratio,
        worst_index=worst[0],
        worst_expected=worst[1],
        worst_found=worst[2],
        max_difference_from_original=difference / (_largest(y) or 1.0),
    )


@dataclass(frozen=True, slots=True)
class _QuantizedRows:
    """Rows as the op quantizes them: about ``integers * factor``.

    Attributes:
        integers: (M, K) float64.
        factor: (M, 1) float64.
        x_scale: of uint8 activations; 0 else.
    """

    integers: NDArray[np.float64]
    factor: NDArray[np.float64]
    x_scale: np.float32

    @classmethod
    def of(cls, x: NDArray[Any], chosen: NDArray[Any], attributes: OpAttributes) -> _QuantizedRows:
        """Rows ``chosen`` of x (M, K), which is all that the op is given at once."""
        x = x.astype(np.float32)
        if attributes.activation == "uint8":
            centred, x_scale = reference.quantize_tensor(x)
            factor = np.full((len(chosen), 1), x_scale, np.float64)
            return cls(centred[chosen].astype(np.float64), factor, x_scale)
        q, s = reference.quantize_rows(x[chosen], attributes)
        with np.errstate(divide="ignore"):
            factor = 1 / s[:, None].astype(np.float64)
        return cls(q.astype(np.float64), factor, np.float32(0))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Some columns of a weight."""

    attributes: OpAttributes
    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def float_bound(
        self, x: NDArray[Any], originals: NDArray[np.float64], weight_tolerance: float
    ) -> NDArray[np.float64]:
        """Bound on |op - original|: the worst kernel's, and that of the original's operations."""
        group_size, K = self.attributes.group_size, self.attributes.K
        ours = reference.float_error_bound(
            x,
            self.levels,
            self.scale,
            group_size,
            self.bias,
            addition_depth=K,
            fixed_point=True,
            dtype=x.dtype,
        )
        # The original sums as many terms and has a few roundings more; all terms grow with gamma.
        longest = K + self.attributes.num_groups + 3
        bound = ours * (1 + reference.gamma(longest + _EXTRA_ROUNDINGS) / reference.gamma(longest))
        if x.dtype == np.float16:
            # The original rounds between its MatMul, scale and bias too.
            bound += 3 * 2.0**-11 * (np.abs(originals) + np.abs(self.bias)) + 3 * 2.0**-25
        if weight_tolerance:
            scale = self.scale
            if group_size:
                scale = np.repeat(scale, group_size, axis=0)[:K]
            weights = np.abs(self.levels) * scale.astype(np.float64)
            # Weights of level 0 may change by as much as the others.
            weights = np.maximum(weights, np.broadcast_to(scale, weights.shape))
            bound += weight_tolerance * (np.abs(x.astype(np.float64)) @ weights)
        return bound

    def _products(
        self, q: NDArray[np.float64], factor: NDArray[np.float64], levels: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """Sums of integers times levels, in activations times weights."""
        step = self.attributes.group_size or self.attributes.K
        scales = np.atleast_2d(self.scale).astype(np.float64)
        products = np.zeros((len(q), levels.shape[1]))
        for group, start in enumerate(range(0, self.attributes.K, step)):
            taken = slice(start, start + step)
            sums = q[:, taken] @ levels[taken].astype(np.float64)
            products += sums * factor * scales[group]
        return products

    def quantized_expected(
        self, x: NDArray[Any], rows: _QuantizedRows
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the activation rule gives, and the bound on the op's distance from it."""
        expected = self._products(rows.integers, rows.factor, self.levels) + self.bias
        attributes, scale = self.attributes, self.scale
        if attributes.activation == "uint8":
            integers = rows.integers.astype(np.int64)
            bound = reference.uint8_error_bound(
                integers, rows.x_scale, self.levels, scale, self.bias, x.dtype
            )
        else:
            bound = reference.int8_error_bound(
                x, self.levels, scale, attributes.group_size, self.bias, attributes, x.dtype
            )
        return expected, bound

    def original_bound(
        self,
        rows: _QuantizedRows,
        dtype: np.dtype[Any],
        *,
        exact_sums: bool,
        weight_tolerance: float,
    ) -> NDArray[np.float64]:
        """Bound on what the original's operations on the same integers are off.

        It sums them, or what they stand for, in float32 unless its product is one of integers. In
        float16 the operands are rounded too.
        """
        terms = self._products(np.abs(rows.integers), rows.factor, np.abs(self.levels))
        terms += np.abs(self.bias)
        roundings = _EXTRA_ROUNDINGS + (0 if exact_sums else self.attributes.K)
        unit = 8 * 2.0**-11 if dtype == np.float16 else 0.0
        bound = (reference.gamma(roundings) + unit) * terms
        if weight_tolerance:
            # Weights of level 0 may change by as much as the others.
            every = np.ones_like(self.levels)
            bound += weight_tolerance * self._products(np.abs(rows.integers), rows.factor, every)
        return bound

    def float_expected(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The product of float activations, in float64."""
        x = x.astype(np.float64)
        return self._products(x, np.ones((len(x), 1)), self.levels) + self.bias


_Judged: TypeAlias = tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]


@dataclass(frozen=True, slots=True)
class _ComparedRows:
    """Rows of X, what the op and the original make of them, and how they are quantized.

    Attributes:
        x: (M, K).
        found: (M, N) of the op; None to judge the weights alone, by their product in float64.
        originals: (M, N) of the original's product.
        quantized: the rows as the op quantizes them; None where it does not.
    """

    x: NDArray[Any]
    found: NDArray[Any] | None
    originals: NDArray[Any]
    quantized: _QuantizedRows | None

    def judge(
        self,
        part: _Columns,
        columns: slice,
        rounds: bool,
        exact_sums: bool,
        weight_tolerance: float,
    ) -> _Judged:
        """Values, the original's, wanted values, errors, and their ratio to the bound."""
        originals = self.originals[:, columns].astype(np.float64)
        if self.found is None:
            values = part.float_expected(self.x)
        else:
            values = self.found[:, columns].astype(np.float64)
        if self.quantized is None:
            bound = part.float_bound(self.x, originals, weight_tolerance)
            return values, originals, originals, *_compare(values, originals, bound)
        wanted, bound = part.quantized_expected(self.x, self.quantized)
        error, ratio = _compare(values, wanted, bound)
        if rounds:
            bound = bound + part.original_bound(
                self.quantized,
                self.x.dtype,
                exact_sums=exact_sums,
                weight_tolerance=weight_tolerance,
            )
            # Where rows have NaN or inf, graphs follow the rule in their own way.
            finite = np.isfinite(self.quantized.factor)
            against_original = _compare(values, originals, bound)[1]
            ratio = np.maximum(ratio, np.where(finite, against_original, 0))
        return values, originals, wanted, error, ratio


def _compare(
    found: NDArray[np.float64], expected: NDArray[np.float64], bound: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors and their ratio to the bound; inf where NaN, inf or an exact value is missed."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(same, 0.0, np.abs(found - expected))
        ratio = np.where(same | np.isposinf(bound), 0.0, error / bound)
    return error, np.where(np.isnan(ratio), np.inf, ratio)


def _largest(values: NDArray[Any]) -> float:
    """The largest finite magnitude, 0 if there is none."""
    magnitudes = np.abs(values.astype(np.float64))
    return float(np.max(magnitudes, initial=0, where=np.isfinite(magnitudes)))


def _node_session(
    after: _Loaded, node: NodeProto, tensors: Sequence[NDArray[Any]], x_dtype: np.dtype[Any]
) -> ort.InferenceSession:
    """The converted node alone, X to Y, through the library."""
    alone = NodeProto()
    alone.CopyFrom(node)
    names = ["codes", "aux", "scale", "bias"]
    alone.input[:] = ["X", *names]
    alone.output[:] = ["Y"]
    dtype = helper.np_dtype_to_tensor_dtype(x_dtype)
    graph = helper.make_graph(
        [alone],
        "product",
        [helper.make_tensor_value_info("X", dtype, None)],
        [onnx.ValueInfoProto(name="Y")],
        [
            numpy_helper.from_array(np.asarray(tensor), name)
            for name, tensor in zip(names, tensors, strict=True)
        ],
    )
    model = helper.make_model(
        graph, opset_imports=after.proto.opset_import, ir_version=after.proto.ir_version
    )
    return after.session(model, optimized=True)


def _check_output(
    name: str,
    node: str,
    expected: NDArray[Any],
    found: NDArray[Any],
    tolerance: float | None,
) -> OutputCheck:
    is_float = expected.dtype.kind == "f"
    common = {"name": name, "node": node, "dtype": expected.dtype.name, "shape": expected.shape}
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return OutputCheck(
            **common,
            max_abs_difference=np.inf,
            max_relative_difference=np.inf,
            tolerance=tolerance,
            worst_index=None,
            top1_agreement=None,
            passed=False,
        )
    if expected.dtype.kind in "fiub":
        wanted, got = expected.astype(np.float64), found.astype(np.float64)
        same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
        with np.errstate(invalid="ignore"):
            gaps = np.where(same, 0.0, np.abs(got - wanted))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        largest = _largest(expected)
    else:
        gaps = (expected != found).astype(np.float64)
        largest = 1.0
    gap = float(gaps.max(initial=0))
    relative = gap / largest if largest else gap
    worst = tuple(map(int, np.unravel_index(np.argmax(gaps), gaps.shape))) if gaps.size else None
    top1 = None
    if is_float and expected.ndim >= 2 and expected.size:
        top1 = float(np.mean(np.argmax(expected, axis=-1) == np.argmax(found, axis=-1)))
    return OutputCheck(
        **common,
        max_abs_difference=gap,
        max_relative_difference=relative,
        tolerance=tolerance,
        worst_index=worst,
        top1_agreement=top1,
        passed=tolerance is None or relative <= tolerance,
    )
