// Packers, blocked for the cache: levels lie row by row and codes column by column, so panels of 64
// columns (one cache line per row) are packed a block of rows at a time.
#include "pack.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>

namespace onnx_ternary {
namespace {

constexpr int64_t kPanel = 64;          // columns
constexpr int64_t kMaxBlockSize = 128;  // rows
constexpr uint8_t kZeroCode = 1;

void Require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

// The product of sizes, refused where it does not fit: callers pass what they were given.
size_t CheckedProduct(std::initializer_list<int64_t> factors) {
  uint64_t product = 1;
  for (const int64_t factor : factors) {
    const uint64_t unsigned_factor = static_cast<uint64_t>(factor);
    Require(factor >= 0 && (unsigned_factor == 0 ||
                            product <= std::numeric_limits<size_t>::max() / unsigned_factor),
            "the index does not fit in memory");
    product *= unsigned_factor;
  }
  return static_cast<size_t>(product);
}

void RequireBytes(const char* name, size_t found, size_t expected) {
  Require(found == expected, std::string(name) + " has " + std::to_string(found) +
                                 " bytes, expected " + std::to_string(expected));
}

// The code (level + 1) an alphabet does not have; 3 for none.
uint8_t ForbiddenCode(Alphabet alphabet) {
  return alphabet == Alphabet::binary_pm ? 1 : alphabet == Alphabet::binary_01 ? 0 : 3;
}

[[noreturn]] void FailLevel(const int8_t* levels, int64_t k_begin, int64_t k_end, int64_t n_begin,
                            int64_t n_end, int64_t N, uint8_t forbidden) {
  for (int64_t k = k_begin; k < k_end; ++k) {
    for (int64_t n = n_begin; n < n_end; ++n) {
      const int8_t level = levels[k * N + n];
      const uint8_t code = static_cast<uint8_t>(level + 1);
      if (code > 2 || code == forbidden) {
        throw std::invalid_argument("levels[" + std::to_string(k) + ", " + std::to_string(n) +
                                    "] = " + std::to_string(level) +
                                    " is not in the alphabet; expected " +
                                    (forbidden == 0   ? "0 or 1"
                                     : forbidden == 1 ? "-1 or 1"
                                                      : "-1, 0 or 1"));
      }
    }
  }
  throw std::invalid_argument("levels changed while they were packed");
}

// Codes (level + 1) of rows [k_begin, k_begin + block_size) and columns [n_begin, n_begin +
// kPanel), padded with the code of 0. panel: (block_size, kPanel).
void LoadPanel(const int8_t* levels, int64_t K, int64_t N, int64_t k_begin, int64_t block_size,
               int64_t n_begin, uint8_t forbidden, uint8_t* panel) {
  const int64_t k_end = std::min(K, k_begin + block_size);
  const int64_t width = std::min(kPanel, N - n_begin);
  uint8_t bad = 0;
  if (k_end - k_begin < block_size || width < kPanel) {
    std::memset(panel, kZeroCode, static_cast<size_t>(block_size * kPanel));
  }
  for (int64_t k = k_begin; k < k_end; ++k) {
    const int8_t* source = levels + k * N + n_begin;
    uint8_t* row = panel + (k - k_begin) * kPanel;
    for (int64_t c = 0; c < width; ++c) {
      const uint8_t code = static_cast<uint8_t>(source[c] + 1);
      bad |= static_cast<uint8_t>((code > 2) | (code == forbidden));
      row[c] = code;
    }
  }
  if (bad) FailLevel(levels, k_begin, k_end, n_begin, n_begin + width, N, forbidden);
}

// One block of kPanel columns, from codes (block_size, kPanel) to bytes (block_bytes, kPanel).
void EncodePanel(const uint8_t* panel, Storage storage, int64_t block_size, int64_t block_bytes,
                 uint8_t* bytes) {
  for (int64_t i = 0; i < block_bytes; ++i) {
    const uint8_t* row = panel + i * kPanel;
    const int64_t stride = block_bytes * kPanel;
    uint8_t* out = bytes + i * kPanel;
    if (storage == Storage::two_bit) {
      for (int64_t c = 0; c < kPanel; ++c) {
        out[c] = static_cast<uint8_t>(row[c] | row[stride + c] << 2 | row[2 * stride + c] << 4 |
                                      row[3 * stride + c] << 6);
      }
      continue;
    }
    std::memset(out, 0, kPanel);
    if (storage == Storage::one_bit) {
      for (int64_t j = 0; j < 8; ++j) {
        for (int64_t c = 0; c < kPanel; ++c) {
          out[c] = static_cast<uint8_t>(out[c] | (row[j * stride + c] >> 1) << j);
        }
      }
      continue;
    }
    uint8_t weight = 1;
    for (int64_t d = 0; d < 5; ++d) {
      const bool inside = d * block_bytes + i < block_size;
      for (int64_t c = 0; c < kPanel; ++c) {
        out[c] = static_cast<uint8_t>(out[c] + weight * (inside ? row[d * stride + c] : kZeroCode));
      }
      weight = static_cast<uint8_t>(weight * 3);
    }
  }
}

size_t CodesBytes(int64_t K, int64_t N, Storage storage, int64_t block_size) {
  Require(K > 0 && N > 0, "K and N must be positive");
  Require(block_size == 16 || block_size == 32 || block_size == 64 || block_size == 128,
          "block_size = " + std::to_string(block_size) + ", expected 16, 32, 64 or 128");
  const int64_t block_bytes = PackedBlockBytes(storage, block_size);
  Require(block_bytes > 0, "the storage is not one of packed");
  return CheckedProduct({CeilDiv(N, 4), CeilDiv(K, block_size), 4, block_bytes});
}

}  // namespace

void DecodeBlock(const uint8_t* bytes, Storage storage, Alphabet alphabet, int64_t block_size,
                 int64_t block_bytes, int8_t* levels) {
  static constexpr int kPowers[] = {1, 3, 9, 27, 81};
  const int8_t zero_bit = alphabet == Alphabet::binary_pm ? -1 : 0;
  for (int64_t field = 0; field * block_bytes < block_size; ++field) {
    int8_t* out = levels + field * block_bytes;
    const int64_t count = std::min(block_bytes, block_size - field * block_bytes);
    for (int64_t i = 0; i < count; ++i) {
      if (storage == Storage::two_bit) {
        out[i] = static_cast<int8_t>((bytes[i] >> (2 * field) & 3) - 1);
      } else if (storage == Storage::one_bit) {
        out[i] = (bytes[i] >> field) & 1 ? int8_t{1} : zero_bit;
      } else {
        out[i] = static_cast<int8_t>(bytes[i] / kPowers[field] % 3 - 1);
      }
    }
  }
}

int64_t PackedBlockBytes(Storage storage, int64_t block_size) {
  switch (storage) {
    case Storage::two_bit:
      return block_size / 4;
    case Storage::dense:
      return CeilDiv(block_size, 5);
    case Storage::one_bit:
      return block_size / 8;
    case Storage::planes:
    case Storage::base3:
      break;
  }
  return 0;
}

void Pack(const int8_t* levels, int64_t K, int64_t N, Storage storage, Alphabet alphabet,
          int64_t block_size, uint8_t* codes, size_t codes_bytes) {
  RequireBytes("codes", codes_bytes, CodesBytes(K, N, storage, block_size));
  Require(storage != Storage::one_bit || alphabet != Alphabet::ternary,
          "storage 1bit holds binary alphabets only");
  const int64_t block_bytes = PackedBlockBytes(storage, block_size);
  const int64_t num_k_blocks = CeilDiv(K, block_size);
  const int64_t num_tiles = CeilDiv(N, 4);
  const uint8_t forbidden = ForbiddenCode(alphabet);
  uint8_t panel[kMaxBlockSize * kPanel];
  uint8_t bytes[kMaxBlockSize * kPanel];
  for (int64_t n = 0; n < N; n += kPanel) {
    const int64_t tile_end = std::min(num_tiles, n / 4 + kPanel / 4);
    for (int64_t b = 0; b < num_k_blocks; ++b) {
      LoadPanel(levels, K, N, b * block_size, block_size, n, forbidden, panel);
      EncodePanel(panel, storage, block_size, block_bytes, bytes);
      for (int64_t tile = n / 4; tile < tile_end; ++tile) {
        uint8_t* out = codes + (tile * num_k_blocks + b) * 4 * block_bytes;
        const uint8_t* column = bytes + (tile * 4 - n);
        for (int64_t c = 0; c < 4; ++c) {
          for (int64_t i = 0; i < block_bytes; ++i) *out++ = column[i * kPanel + c];
        }
      }
    }
  }
}

void Unpack(const uint8_t* codes, size_t codes_bytes, int64_t K, int64_t N, Storage storage,
            Alphabet alphabet, int64_t block_size, int8_t* levels) {
  RequireBytes("codes", codes_bytes, CodesBytes(K, N, storage, block_size));
  Require(storage != Storage::one_bit || alphabet != Alphabet::ternary,
          "storage 1bit holds binary alphabets only");
  const int64_t block_bytes = PackedBlockBytes(storage, block_size);
  const int64_t num_k_blocks = CeilDiv(K, block_size);
  int8_t panel[kPanel][kMaxBlockSize];
  for (int64_t n = 0; n < N; n += kPanel) {
    const int64_t width = std::min(kPanel, N - n);
    for (int64_t b = 0; b < num_k_blocks; ++b) {
      const int64_t k_begin = b * block_size;
      const int64_t count = std::min(block_size, K - k_begin);
      for (int64_t c = 0; c < width; ++c) {
        const int64_t tile = (n + c) / 4;
        const uint8_t* bytes = codes + ((tile * num_k_blocks + b) * 4 + (n + c) % 4) * block_bytes;
        DecodeBlock(bytes, storage, alphabet, block_size, block_bytes, panel[c]);
      }
      for (int64_t r = 0; r < count; ++r) {
        int8_t* row = levels + (k_begin + r) * N + n;
        for (int64_t c = 0; c < width; ++c) row[c] = panel[c][r];
      }
    }
  }
}

void ExpandDense(const Layer& layer, std::vector<uint8_t>* codes) {
  const int64_t block_size = layer.block_size;
  const int64_t dense_bytes = layer.block_bytes;
  const int64_t two_bit_bytes = PackedBlockBytes(Storage::two_bit, block_size);
  const int64_t num_blocks = layer.num_column_tiles * layer.num_k_blocks * 4;
  codes->resize(static_cast<size_t>(num_blocks * two_bit_bytes));
  uint8_t digits[256][5];
  for (int byte = 0; byte < 256; ++byte) {
    int rest = byte;
    for (uint8_t& digit : digits[byte]) {
      digit = static_cast<uint8_t>(rest % 3);
      rest /= 3;
    }
  }
  // 5 * 26 = 130 digits for a block of 128.
  uint8_t block[kMaxBlockSize + 5];
  const uint8_t* in = layer.codes;
  uint8_t* out = codes->data();
  for (int64_t index = 0; index < num_blocks; ++index) {
    for (int64_t i = 0; i < dense_bytes; ++i) {
      const uint8_t* digit = digits[*in++];
      for (int64_t d = 0; d < 5; ++d) block[d * dense_bytes + i] = digit[d];
    }
    for (int64_t i = 0; i < two_bit_bytes; ++i) {
      *out++ = static_cast<uint8_t>(block[i] | block[two_bit_bytes + i] << 2 |
                                    block[2 * two_bit_bytes + i] << 4 |
                                    block[3 * two_bit_bytes + i] << 6);
    }
  }
}

template <typename Index>
void PackRsr(const int8_t* levels, int64_t K, int64_t N, Storage storage, Alphabet alphabet,
             int64_t block_width, int64_t group_size, Index* permutation, size_t permutation_bytes,
             uint32_t* segment_offsets, size_t segment_offsets_bytes) {
  const bool base3 = storage == Storage::base3;
  Require(K > 0 && N > 0 && group_size >= 0, "K and N must be positive, group_size not negative");
  Require(storage == Storage::planes || base3, "the storage is not one of rsr");
  Require(!base3 || alphabet == Alphabet::ternary, "storage base3 holds the ternary alphabet only");
  Require(1 <= block_width && block_width <= (base3 ? 10 : 16),
          "block_width = " + std::to_string(block_width) + ", expected from 1 to " +
              (base3 ? "10" : "16"));
  Require(static_cast<uint64_t>(K - 1) <= std::numeric_limits<Index>::max(),
          "K = " + std::to_string(K) + " does not fit the permutation's dtype");
  const int64_t group_rows = group_size == 0 ? K : std::min(group_size, K);
  const int64_t num_groups = CeilDiv(K, group_rows);
  const int64_t num_blocks = CeilDiv(N, block_width);
  const int64_t num_planes = !base3 && alphabet == Alphabet::ternary ? 2 : 1;
  int64_t num_patterns = 1;
  for (int64_t c = 0; c < block_width; ++c) num_patterns *= base3 ? 3 : 2;
  RequireBytes("permutation", permutation_bytes,
               CheckedProduct({num_planes, num_blocks, K, int64_t{sizeof(Index)}}));
  RequireBytes("segment_offsets", segment_offsets_bytes,
               CheckedProduct({num_planes, num_blocks, num_groups, num_patterns + 1,
                               int64_t{sizeof(uint32_t)}}));

  // Levels of whole column blocks, about a cache line wide, copied once so that sorting walks
  // contiguous memory. strip: (K, strip_width).
  const int64_t blocks_a_strip = kPanel / block_width;
  const int64_t strip_width = blocks_a_strip * block_width;
  const uint8_t forbidden = ForbiddenCode(alphabet);
  std::vector<uint8_t> strip(static_cast<size_t>(K * strip_width));
  std::vector<uint16_t> patterns(static_cast<size_t>(K));
  std::vector<uint32_t> next(static_cast<size_t>(num_patterns));
  for (int64_t first_block = 0; first_block < num_blocks; first_block += blocks_a_strip) {
    const int64_t n_begin = first_block * block_width;
    const int64_t width = std::min(strip_width, N - n_begin);
    uint8_t bad = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int8_t* source = levels + k * N + n_begin;
      uint8_t* row = strip.data() + k * strip_width;
      for (int64_t c = 0; c < width; ++c) {
        const uint8_t code = static_cast<uint8_t>(source[c] + 1);
        bad |= static_cast<uint8_t>((code > 2) | (code == forbidden));
        row[c] = code;
      }
      // Code 1 is digit 1 of base3 and digit 0 of every plane.
      for (int64_t c = width; c < strip_width; ++c) row[c] = kZeroCode;
    }
    if (bad) FailLevel(levels, 0, K, n_begin, n_begin + width, N, forbidden);

    const int64_t end_block = std::min(num_blocks, first_block + blocks_a_strip);
    for (int64_t block = first_block; block < end_block; ++block) {
      for (int64_t plane = 0; plane < num_planes; ++plane) {
        const uint8_t one = plane == 0 ? 2 : 0;  // the code that is digit 1 of this plane
        const uint8_t* row = strip.data() + (block - first_block) * block_width;
        for (int64_t k = 0; k < K; ++k, row += strip_width) {
          uint32_t pattern = 0;
          if (base3) {
            for (int64_t c = 0; c < block_width; ++c) pattern = pattern * 3 + row[c];
          } else {
            for (int64_t c = 0; c < block_width; ++c) pattern = pattern * 2 + (row[c] == one);
          }
          patterns[static_cast<size_t>(k)] = static_cast<uint16_t>(pattern);
        }
        const int64_t index = plane * num_blocks + block;
        Index* order = permutation + index * K;
        for (int64_t group = 0; group < num_groups; ++group) {
          uint32_t* offsets = segment_offsets + (index * num_groups + group) * (num_patterns + 1);
          const int64_t begin = group * group_rows;
          const int64_t end = std::min(K, begin + group_rows);
          std::fill(offsets, offsets + num_patterns + 1, 0u);
          for (int64_t k = begin; k < end; ++k) ++offsets[patterns[static_cast<size_t>(k)] + 1];
          offsets[0] = static_cast<uint32_t>(begin);
          for (int64_t p = 0; p < num_patterns; ++p) offsets[p + 1] += offsets[p];
          std::copy(offsets, offsets + num_patterns, next.begin());
          for (int64_t k = begin; k < end; ++k) {
            order[next[patterns[static_cast<size_t>(k)]]++] = static_cast<Index>(k);
          }
        }
      }
    }
  }
}

template void PackRsr<uint16_t>(const int8_t*, int64_t, int64_t, Storage, Alphabet, int64_t,
                                int64_t, uint16_t*, size_t, uint32_t*, size_t);
template void PackRsr<uint32_t>(const int8_t*, int64_t, int64_t, Storage, Alphabet, int64_t,
                                int64_t, uint32_t*, size_t, uint32_t*, size_t);

}  // namespace onnx_ternary
