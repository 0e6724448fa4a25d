"""Many threads, sessions and processes at once: everyone gets the bits a lone caller gets.

``ONNX_TERNARY_STRESS_CALLS=5000`` makes every thread call so often.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary import OptimizeOptions

DIGITS = Path(__file__).parents[2] / "examples" / "digits_mlp.onnx"
NUM_THREADS = 8
CALLS_A_THREAD = int(os.environ.get("ONNX_TERNARY_STRESS_CALLS", "200"))
ROWS = (1, 2, 3, 9, 17, 70)

Images = NDArray[np.float32]


def images(rows: int) -> Images:
    return np.random.default_rng(rows).uniform(0, 16, (rows, 64)).astype(np.float32)


def open_session(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return onnx_ternary.InferenceSession(path, options)


def logits(session: ort.InferenceSession, rows: int) -> NDArray[Any]:
    result: NDArray[Any] = session.run(None, {"image": images(rows)})[0]
    return result


def convert(folder: Path, **options: Any) -> Path:
    path = folder / "digits.onnx"
    onnx_ternary.optimize(DIGITS, OptimizeOptions(external_data="always", **options)).save(path)
    return path


@pytest.fixture(
    scope="module",
    params=[{}, {"activation": "int8"}, {"index_format": "rsr"}],
    ids=["packed float", "packed int8", "rsr float"],
)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("converted"), **request.param)


def in_threads(work: Callable[[int], None]) -> None:
    """Run ``work(0)`` .. ``work(NUM_THREADS - 1)`` at once; the first failure is raised."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(work, range(NUM_THREADS)))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_one_session_many_callers(converted: Path, threads: int) -> None:
    alone = open_session(converted)
    expected = {rows: logits(alone, rows) for rows in ROWS}
    shared = open_session(converted, threads)

    def work(seed: int) -> None:
        for rows in np.random.default_rng(seed).choice(ROWS, CALLS_A_THREAD):
            np.testing.assert_array_equal(logits(shared, rows), expected[rows])

    in_threads(work)


def test_many_sessions_of_one_file(converted: Path) -> None:
    sessions = [open_session(converted, threads) for threads in (1, 2, 1, 2)]
    expected = {rows: logits(sessions[0], rows) for rows in ROWS}

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for rows in rng.choice(ROWS, CALLS_A_THREAD):
            session = sessions[rng.integers(len(sessions))]
            np.testing.assert_array_equal(logits(session, rows), expected[rows])

    in_threads(work)


def test_sessions_come_and_go_while_others_run(converted: Path) -> None:
    kept = open_session(converted, 2)
    expected = {rows: logits(kept, rows) for rows in ROWS}

    def work(seed: int) -> None:
        for call, rows in enumerate(np.random.default_rng(seed).choice(ROWS, 80)):
            session = kept if seed % 2 else open_session(converted, 1 + call % 2)
            np.testing.assert_array_equal(logits(session, rows), expected[rows])

    in_threads(work)


def answer(path: Path) -> bytes:
    """What a process answers; called by name in children."""
    session = open_session(path, 2)
    return b"".join(logits(session, rows).tobytes() for rows in ROWS)


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_processes(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    converted = convert(tmp_path)
    expected = subprocess.run(
        [sys.executable, "-c", PRINT_ANSWER, str(converted), method],
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    ).stdout
    assert expected == answer(converted)


# A parent that has loaded the library, but run no session: ONNX Runtime's own threads do not
# survive a fork.
PRINT_ANSWER = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import onnx_ternary
from tests.e2e.test_concurrency import answers_of_children
if __name__ == "__main__":
    onnx_ternary.list_kernels()
    sys.stdout.buffer.write(answers_of_children(Path(sys.argv[1]), sys.argv[2]))
"""


def answers_of_children(path: Path, method: str) -> bytes:
    """The answer of four processes, which must be one."""
    context: BaseContext = multiprocessing.get_context(method)
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload(["onnx_ternary"])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        answers = set(pool.map(answer, [path] * 4))
    assert len(answers) == 1
    return answers.pop()


GLOBAL_POOL = """
import sys
import numpy as np
import onnxruntime as ort
ort.set_global_thread_pool_sizes(2, 1)
import onnx_ternary
from tests.e2e import test_concurrency as test
options = ort.SessionOptions()
options.use_per_session_threads = False
sessions = [onnx_ternary.InferenceSession(sys.argv[1], options) for _ in range(2)]
def work(seed):
    for rows in test.ROWS:
        np.testing.assert_array_equal(test.logits(sessions[seed % 2], rows), expected[rows])
expected = {rows: test.logits(sessions[0], rows) for rows in test.ROWS}
test.in_threads(work)
sys.stdout.buffer.write(b"".join(expected[rows].tobytes() for rows in test.ROWS))
"""


@pytest.mark.skipif(
    not hasattr(ort, "set_global_thread_pool_sizes"),
    reason="this onnxruntime has no global thread pool in Python",
)
def test_global_thread_pool(tmp_path: Path) -> None:
    converted = convert(tmp_path)
    command = [sys.executable, "-c", GLOBAL_POOL, str(converted)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    assert done.stdout == answer(converted)
