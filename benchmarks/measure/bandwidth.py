"""DRAM read bandwidth: plain vector loads over a buffer far larger than the caches."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from measure.c_code import compiled
from measure.harness import GIB

BUFFER_BYTES = GIB // 2
# Streams read side by side: one is what a product does, several keep more loads in flight.
STREAMS = (1, 2, 4)
SOURCE = """
#include <stdint.h>
typedef uint64_t vec __attribute__((vector_size(64)));
uint64_t read_streams(const vec* p, int64_t count, int64_t streams) {
  const int64_t length = count / streams;
  vec a = {0}, b = {0}, c = {0}, d = {0};
  for (int64_t i = 0; i + 4 <= length; i += 4) {
    for (int64_t s = 0; s < streams; ++s) {
      const vec* q = p + s * length + i;
      a ^= q[0]; b ^= q[1]; c ^= q[2]; d ^= q[3];
    }
  }
  a ^= b; c ^= d; a ^= c;
  return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}
"""


def read_bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes a second that so many threads read together: the best of all rounds."""
    read = compiled(SOURCE).read_streams
    read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    read.restype = ctypes.c_uint64
    buffer = np.zeros(BUFFER_BYTES + 64, np.uint8)
    buffer[:] = 1  # every page its own
    address = -(-buffer.ctypes.data // 64) * 64
    part = BUFFER_BYTES // 64 // threads
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for streams in STREAMS * rounds:
            start = time.perf_counter()
            parts = [
                pool.submit(read, address + 64 * part * i, part, streams) for i in range(threads)
            ]
            for each in parts:
                each.result()
            best = max(best, 64 * part * threads / (time.perf_counter() - start))
    return best
