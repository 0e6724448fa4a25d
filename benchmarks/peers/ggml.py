"""llama.cpp's ggml, mul_mat of TQ2_0 (2.06 bits) and TQ1_0 (1.69 bits), through ctypes.

The libraries come from `llama-cpp-python` (a source distribution that builds for this processor)
or `libggml-python` (wheels, AVX2); both offer ggml's C interface. Weights are quantized by ggml
itself, which keeps ternary ones but for the scale in float16; activations become 8 bits.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peers import Layer, Peer, Run, UnavailableError, bits_of

TYPES = {"TQ1_0": 34, "TQ2_0": 35}  # enum ggml_type
FLOAT32 = 0
BLOCK = 256
MAX_THREADS = 512  # GGML_MAX_N_THREADS
FOLDERS = (("llama_cpp", "lib"), ("libggml", "lib64"), ("libggml", "lib"))
Pointer = ctypes.c_void_p


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", Pointer),
        ("no_alloc", ctypes.c_bool),
    )


class ThreadpoolParams(ctypes.Structure):
    """ggml_threadpool_params."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


@cache
def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The base and CPU libraries of ggml, with the functions used here declared."""
    for package, folder in FOLDERS:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        path = Path(spec.origin).parent / folder
        if (path / "libggml-cpu.so").exists():
            base = ctypes.CDLL(str(path / "libggml-base.so"), ctypes.RTLD_GLOBAL)
            cpu = ctypes.CDLL(str(path / "libggml-cpu.so"))
            break
    else:
        raise UnavailableError("pip install libggml-python, or llama-cpp-python")
    size, integer = ctypes.c_size_t, ctypes.c_int64
    for library, name, result, arguments in (
        (base, "ggml_init", Pointer, (InitParams,)),
        (base, "ggml_free", None, (Pointer,)),
        (base, "ggml_new_tensor_2d", Pointer, (Pointer, ctypes.c_int, integer, integer)),
        (base, "ggml_get_data", Pointer, (Pointer,)),
        (base, "ggml_mul_mat", Pointer, (Pointer, Pointer, Pointer)),
        (base, "ggml_new_graph", Pointer, (Pointer,)),
        (base, "ggml_build_forward_expand", None, (Pointer, Pointer)),
        (base, "ggml_row_size", size, (ctypes.c_int, integer)),
        (
            base,
            "ggml_quantize_chunk",
            size,
            (ctypes.c_int, Pointer, Pointer, integer, integer, integer, Pointer),
        ),
        (base, "ggml_backend_graph_compute", ctypes.c_int, (Pointer, Pointer)),
        (base, "ggml_threadpool_params_default", ThreadpoolParams, (ctypes.c_int,)),
        (cpu, "ggml_threadpool_new", Pointer, (ctypes.POINTER(ThreadpoolParams),)),
        (cpu, "ggml_backend_cpu_init", Pointer, ()),
        (cpu, "ggml_backend_cpu_set_n_threads", None, (Pointer, ctypes.c_int)),
        (cpu, "ggml_backend_cpu_set_threadpool", None, (Pointer, Pointer)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = list(arguments)
    return base, cpu


@cache
def backend(threads: int) -> int:
    """A CPU backend with a pool of threads, as llama.cpp uses it."""
    base, cpu = libraries()
    made: int = cpu.ggml_backend_cpu_init()
    params = base.ggml_threadpool_params_default(threads)
    cpu.ggml_backend_cpu_set_n_threads(made, threads)
    cpu.ggml_backend_cpu_set_threadpool(made, cpu.ggml_threadpool_new(ctypes.byref(params)))
    return made


class Product:
    """Y = X @ W with W (N, K) in one of ggml's types; a graph for each M, made when first used."""

    def __init__(self, layer: Layer, threads: int, ggml_type: int) -> None:
        self.base, _ = libraries()
        self.backend = backend(threads)
        self.K, self.N = layer.levels.shape
        weight_bytes = self.base.ggml_row_size(ggml_type, self.K) * self.N
        self.weights = self._context(weight_bytes)
        self.weight = self.base.ggml_new_tensor_2d(self.weights, ggml_type, self.K, self.N)
        dense = np.ascontiguousarray(layer.dense.T)
        self.base.ggml_quantize_chunk(
            ggml_type,
            dense.ctypes.data,
            self.base.ggml_get_data(self.weight),
            0,
            self.N,
            self.K,
            None,
        )
        self.graphs: dict[int, tuple[int, int, NDArray[np.float32], NDArray[np.float32]]] = {}

    def _context(self, tensor_bytes: int) -> int:
        made: int = self.base.ggml_init(InitParams(tensor_bytes + 2**21, None, False))
        return made

    def _floats(self, tensor: int, rows: int, columns: int) -> NDArray[np.float32]:
        address = self.base.ggml_get_data(tensor)
        values = (ctypes.c_float * (rows * columns)).from_address(address)
        return np.ctypeslib.as_array(values).reshape(rows, columns)

    def _graph(self, M: int) -> tuple[int, int, NDArray[np.float32], NDArray[np.float32]]:
        context = self._context(4 * M * (self.K + self.N))
        x = self.base.ggml_new_tensor_2d(context, FLOAT32, self.K, M)
        y = self.base.ggml_mul_mat(context, self.weight, x)
        graph = self.base.ggml_new_graph(context)
        self.base.ggml_build_forward_expand(graph, y)
        return context, graph, self._floats(x, M, self.K), self._floats(y, M, self.N)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X @ W; what is returned is overwritten by the next call."""
        M = x.shape[0]
        if M not in self.graphs:
            self.graphs[M] = self._graph(M)
        _, graph, x_of_graph, y = self.graphs[M]
        x_of_graph[:] = x
        status = self.base.ggml_backend_graph_compute(self.backend, graph)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")
        return y

    def __del__(self) -> None:
        for context, *_ in self.graphs.values():
            self.base.ggml_free(context)
        self.base.ggml_free(self.weights)


def prepare(layer: Layer, threads: int, copies: int, *, name: str) -> list[Run]:
    """mul_mat in the type of that name."""
    libraries()  # or a Product would be half made
    if layer.levels.shape[0] % BLOCK:
        raise UnavailableError(f"K = {layer.levels.shape[0]} is not a multiple of {BLOCK}")
    return [Product(layer, threads, TYPES[name]) for _ in range(copies)]


PEERS = (
    Peer("ggml TQ2_0", 2e-2, True, partial(prepare, name="TQ2_0"), bits_of(66 * 8 / BLOCK)),
    Peer("ggml TQ1_0", 2e-2, True, partial(prepare, name="TQ1_0"), bits_of(54 * 8 / BLOCK)),
)
