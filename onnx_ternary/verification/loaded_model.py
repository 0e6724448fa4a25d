"""A model that is compared: its proto, its sessions, its constants."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnx_ternary import _onnxruntime as ort
from onnx_ternary import runtime
from onnx_ternary._machine import session_threads
from onnx_ternary.errors import ModelError, OnnxTernaryError
from onnx_ternary.model_files.external_data import external_protos, relocated, stored_array
from onnx_ternary.model_files.load import ModelFile, from_bytes
from onnx_ternary.model_files.save import to_proto
from onnx_ternary.schema import OP_TYPE

Model: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | ir.Model | ModelFile"

# The first onnxruntime that can be told where the data of a model in memory lies.
_KNOWS_DATA_FOLDER = (1, 21)

_MakeSession: TypeAlias = "Callable[[str | bytes, ort.SessionOptions], ort.InferenceSession]"


def _with_op(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    return runtime.InferenceSession(model, options)


def _without_op(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose external tensors stay in their files.

    `path` is None for a model that was given in memory.
    """

    proto: ModelProto
    path: Path | None
    role: str
    libraries: tuple[str, ...]

    @classmethod
    def load(cls, model: Model, role: str, libraries: tuple[str, ...]) -> LoadedModel:
        """Read a model, its external tensors apart.

        Raises:
            ModelError: if it cannot be read.
        """
        if isinstance(model, ModelFile):
            return cls(model.proto, model.path, role, libraries)
        if isinstance(model, ModelProto):
            return cls(model, None, role, libraries)
        if isinstance(model, ir.Model):
            return cls(to_proto(model), None, role, libraries)
        if isinstance(model, bytes):
            proto = to_proto(from_bytes(model, f"{role} model"))
            return cls(proto, None, role, libraries)
        path = Path(model)
        try:
            if path.exists() and not path.is_file():  # reading a pipe or a device may never end
                raise ModelError(f"The {role} model {path} is not an ordinary file.")
            return cls(onnx.load(path, load_external_data=False), path, role, libraries)
        except ModelError:
            raise
        except OSError as error:
            raise ModelError(f"The {role} model {path} cannot be read: {error}.") from error
        except Exception as error:  # protobuf's and onnx's decoding errors share no base
            raise ModelError(
                f"The {role} model {path} is not a readable ONNX model: {error}."
            ) from error

    @property
    def name(self) -> str:
        """What messages call the model."""
        return f"{self.role} model" if self.path is None else f"{self.role} model {self.path}"

    def session(
        self, proto: ModelProto | None, *, optimized: bool, with_op: bool = True
    ) -> ort.InferenceSession:
        """A session of the model, or of an edited copy of its proto.

        Args:
            proto: the copy; None for the model.
            optimized: whether onnxruntime may optimize it.
            with_op: whether the op's library is registered; the function body runs without it.

        Raises:
            ModelError: if onnxruntime refuses it.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = session_threads()
        # Sessions run once: threads that wait for more would only take processor time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        runtime.register_libraries(options, self.libraries)
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        )
        make = _with_op if with_op else _without_op
        try:
            if proto is None and self.path is not None:
                return make(str(self.path), options)
            proto = self.proto if proto is None else proto
            if not any(external_protos(proto)):
                return make(proto.SerializeToString(), options)
            return self._session_with_external_data(proto, options, make)
        except OnnxTernaryError:
            raise
        except Exception as error:  # onnxruntime raises types of its own that share no base
            raise self._error("load", error) from error

    def _session_with_external_data(
        self, proto: ModelProto, options: ort.SessionOptions, make: _MakeSession
    ) -> ort.InferenceSession:
        proto, folder = relocated(proto, self.path)
        if runtime.onnxruntime_version() >= _KNOWS_DATA_FOLDER:
            entry = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(entry, str(folder))
        else:
            for tensor in external_protos(proto):
                array = stored_array(tensor, folder / "model")
                tensor.CopyFrom(ir.to_proto(ir.Tensor(array, name=tensor.name)))
        return make(proto.SerializeToString(), options)

    def run(
        self, feeds: Mapping[str, NDArray[Any]], names: Sequence[str], *, optimized: bool
    ) -> dict[str, Any]:
        """Outputs by name: arrays, lists of sequences, dictionaries of maps, None.

        Raises:
            ModelError: if onnxruntime cannot load or run the model.
        """
        return self.run_values(self.session(None, optimized=optimized), feeds, names)

    def run_session(
        self,
        session: ort.InferenceSession,
        feeds: Mapping[str, NDArray[Any]],
        names: Sequence[str],
    ) -> dict[str, NDArray[Any]]:
        """Outputs of a session that gives tensors, by name.

        Raises:
            ModelError: if onnxruntime cannot run it, or an output is no tensor.
        """
        results = self.run_values(session, feeds, names)
        for name, result in results.items():
            if not isinstance(result, np.ndarray):
                raise ModelError(f"Value '{name}' of the {self.name} is not a tensor.")
        return results

    def run_values(
        self,
        session: ort.InferenceSession,
        feeds: Mapping[str, NDArray[Any]],
        names: Sequence[str],
    ) -> dict[str, Any]:
        """Outputs of a session by name, of whatever type they are.

        Raises:
            ModelError: if onnxruntime cannot run it.
        """
        try:
            results = session.run(list(names), dict(feeds))
        except Exception as error:  # onnxruntime raises types of its own that share no base
            raise self._error("run", error) from error
        return dict(zip(names, results, strict=True))

    def _error(self, action: str, error: Exception) -> ModelError:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ModelError(
            f"onnxruntime cannot {action} the {self.name}: {first_line}; "
            f"{self._advice(action, first_line)}."
        )

    def _advice(self, action: str, problem: str) -> str:
        if "ONNX_TERNARY_" in problem:
            return "change or unset this environment variable"
        if self.role != "original":
            return "convert it again with 'onnx-ternary optimize'"
        if action == "run":
            return "it may need other inputs (--inputs, --shape)"
        return (
            "check it with onnx.checker.check_model, and that its operators exist in "
            f"onnxruntime {ort.__version__} on CPU; operators of another library need --library "
            "(custom_op_libraries)"
        )

    def constants(
        self, tensors: Mapping[str, TensorProto], names: Sequence[str], node: str
    ) -> list[NDArray[Any]]:
        """Constant inputs of a converted node, among the constants it sees.

        Raises:
            ModelError: if one is not an initializer or its data file is missing.
        """
        arrays = []
        for name in names:
            if name not in tensors:
                raise ModelError(
                    f"{OP_TYPE} '{node}': input '{name}' is not an initializer of the {self.name}; "
                    "convert the model again with 'onnx-ternary optimize'."
                )
            try:
                arrays.append(stored_array(tensors[name], self.path))
            except Exception as error:  # neither onnx_ir nor numpy documents narrower classes
                raise ModelError(
                    f"{OP_TYPE} '{node}': initializer '{name}' of the {self.name} cannot be read: "
                    f"{error}."
                ) from error
        return arrays


class Tries:
    """Runs of a model on inputs that may not fit, with the outputs of the last run."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._session: ort.InferenceSession | None = None
        self._last: tuple[Mapping[str, NDArray[Any]], dict[str, Any]] | None = None

    def refusal(self, feeds: Mapping[str, NDArray[Any]]) -> ModelError | None:
        """Why the model does not run on inputs; None where it does."""
        if self._session is None:
            self._session = self._model.session(None, optimized=False)
        names = [output.name for output in self._session.get_outputs()]
        try:
            self._last = feeds, self._model.run_values(self._session, feeds, names)
        except ModelError as error:
            return error
        return None

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """What the model gives for inputs; it runs if these were not the last ones tried.

        Raises:
            ModelError: if it does not run.
        """
        if self._last is None or self._last[0] is not feeds:
            error = self.refusal(feeds)
            if error is not None:
                raise error
        assert self._last is not None
        return self._last[1]
