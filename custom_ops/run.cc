#include "run.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#include "dispatch/kernel_registry.h"
#include "dispatch/select.h"
#include "pack.h"
#include "unsigned.h"

namespace onnx_ternary {
namespace {

// A parallel item is worth its dispatch (a few microseconds) from about this many products on.
constexpr int64_t kMinWorkPerItem = int64_t{1} << 18;
constexpr int64_t kItemsPerThread = 4;
// From this many rows on, kernels build tables per part, which wants wide parts.
constexpr int64_t kTableRows = 3;
constexpr int64_t kWideColumns = 1024;
constexpr int64_t kNarrowColumns = 64;
// Rows that kernels with large tiles compute side by side.
constexpr int64_t kRowStep = 16;
constexpr size_t kMaxRoundBytes = size_t{32} << 20;
// What the tiles of a round may take for each thread, so that what prepare() wrote is still in L2
// when compute() reads it, as long as every thread has a tile.
constexpr size_t kRoundBytesPerThread = size_t{640} << 10;
constexpr size_t kAlignment = 64;

size_t Align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Zeroed by nobody; freed with the call.
class Buffer {
 public:
  Buffer(Host* host, size_t bytes) : host_(host) {
    if (bytes == 0) return;
    memory_ = host->Allocate(bytes + kAlignment);
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    data_ = reinterpret_cast<uint8_t*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  ~Buffer() {
    if (memory_ != nullptr) host_->Free(memory_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() { return data_; }

 private:
  Host* host_;
  void* memory_ = nullptr;
  uint8_t* data_ = nullptr;
};

// A C callback for Host::ParallelFor from a callable that does not throw.
template <typename Body>
void ParallelFor(Host* host, int64_t count, const Body& body) {
  static_assert(noexcept(body(int64_t{0})), "an exception in a pool thread ends the process");
  if (count == 1) {
    body(0);
    return;
  }
  if (count <= 0) return;
  host->ParallelFor(
      static_cast<size_t>(count),
      [](void* context, size_t i) {
        (*static_cast<const Body*>(context))(static_cast<int64_t>(i));
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

class Runner {
 public:
  Runner(const Layer& layer, const RunRequest& request, Host* host,
         std::vector<const Kernel*>* used)
      : layer_(layer), request_(request), host_(host), used_(used) {}

  void Run() {
    if (request_.rows == 0) return;
    if (layer_.column_sums) call_ = CallOf(Range());
    if (request_.kernel != nullptr) {
      RunRows(nullptr, request_.rows, [&](int64_t) { return request_.kernel; });
      return;
    }
    if (layer_.activation == Activation::int8) {
      // The rule itself says what becomes of every row.
      RunRows(nullptr, request_.rows,
              [&](int64_t remaining) { return Select(remaining, /*ordinary_rows=*/true); });
      return;
    }
    ClassifyRows();
    // Which kernel computes a row depends on that row alone: which rows share a tile depends on the
    // number of threads.
    std::vector<int64_t> ordinary_rows, spread_rows, ieee_rows;
    for (int64_t m = 0; m < request_.rows; ++m) {
      const RowKind kind = kinds_[static_cast<size_t>(m)];
      (kind == RowKind::ordinary ? ordinary_rows
       : kind == RowKind::spread ? spread_rows
                                 : ieee_rows)
          .push_back(m);
    }
    const auto run = [&](const std::vector<int64_t>& rows, const auto& choose) {
      const int64_t num_rows = static_cast<int64_t>(rows.size());
      RunRows(num_rows == request_.rows ? nullptr : rows.data(), num_rows, choose);
    };
    run(ordinary_rows,
        [&](int64_t remaining) { return Select(remaining, /*ordinary_rows=*/true); });
    run(spread_rows, [&](int64_t remaining) { return Select(remaining, /*ordinary_rows=*/false); });
    const Kernel* reference = ReferenceKernel(layer_.index_format, layer_.activation);
    run(ieee_rows, [&](int64_t) { return reference; });
  }

 private:
  struct Tile {
    int64_t first;  // position in the row list
    int64_t rows;
    const float* x;  // (rows, K)
    float* y;        // (rows, N)
    uint8_t* prepared;
  };

  const Kernel* Select(int64_t rows, bool ordinary_rows) const {
    std::string error;
    const Kernel* kernel = SelectKernel(layer_, rows, ordinary_rows, &error);
    if (kernel == nullptr) throw RunError(error);
    return kernel;
  }

  const void* XRow(int64_t m) const {
    const size_t row_bytes = static_cast<size_t>(layer_.K) * ElementBytes(request_.type);
    return static_cast<const uint8_t*>(request_.x) + static_cast<size_t>(m) * row_bytes;
  }

  void* YElement(int64_t m, int64_t n) const {
    const size_t index =
        static_cast<size_t>(m) * static_cast<size_t>(layer_.N) + static_cast<size_t>(n);
    return static_cast<uint8_t*>(request_.y) + index * ElementBytes(request_.type);
  }

  // What all rows of X have in common under dynamic_quantize_linear; minimum and maximum do not
  // depend on how many threads look for them.
  ActivationRange Range() {
    std::vector<ActivationRange> ranges(static_cast<size_t>(NumRowParts()));
    ForEachRow(NumRowParts(), [&](int64_t part, int64_t, const float* x) noexcept {
      Widen(x, layer_.K, &ranges[static_cast<size_t>(part)]);
    });
    ActivationRange all;
    for (const ActivationRange& range : ranges) Widen(range, &all);
    return all;
  }

  void ClassifyRows() {
    kinds_.resize(static_cast<size_t>(request_.rows));
    ForEachRow(NumRowParts(), [&](int64_t, int64_t m, const float* x) noexcept {
      kinds_[static_cast<size_t>(m)] = ClassifyRow(x, layer_.K);
    });
  }

  int64_t NumRowParts() const {
    return std::min(
        {request_.rows, host_->NumThreads(), std::max<int64_t>(1, request_.rows * layer_.K >> 18)});
  }

  // visit(part, m, x): row m of X as float32, by the one of num_parts parts that m belongs to.
  template <typename Visit>
  void ForEachRow(int64_t num_parts, const Visit& visit) {
    const bool convert = request_.type != ElementType::float32;
    const size_t row_bytes = Align(convert ? static_cast<size_t>(layer_.K) * sizeof(float) : 0);
    Buffer converted(host_, row_bytes * static_cast<size_t>(num_parts));
    ParallelFor(host_, num_parts, [&](int64_t part) noexcept {
      float* row =
          reinterpret_cast<float*>(converted.data() + row_bytes * static_cast<size_t>(part));
      const int64_t end = request_.rows * (part + 1) / num_parts;
      for (int64_t m = request_.rows * part / num_parts; m < end; ++m) {
        const float* x = static_cast<const float*>(XRow(m));
        if (convert) {
          LoadRow(request_.type, XRow(m), layer_.K, row);
          x = row;
        }
        visit(part, m, x);
      }
    });
  }

  // rows: (num_rows,) positions in X, or null for all of them. choose(remaining) gives the
  // kernel of the next tile, where `remaining` rows are not computed yet.
  template <typename Choose>
  void RunRows(const int64_t* rows, int64_t num_rows, const Choose& choose) {
    for (int64_t first = 0; first < num_rows;) {
      const Kernel* kernel = choose(num_rows - first);
      if (used_ && std::find(used_->begin(), used_->end(), kernel) == used_->end()) {
        used_->push_back(kernel);
      }
      // Full tiles of the same kernel make a round, as many as keep the threads busy.
      std::vector<Tile> tiles;
      const int64_t tile_rows = TileRows(*kernel, num_rows - first);
      const int64_t most =
          std::min(MaxTiles(*kernel, num_rows - first), kItemsPerThread * host_->NumThreads());
      do {
        int64_t count = std::min(num_rows - first, tile_rows);
        // A few rows more than whole steps are better left to a kernel for few rows.
        const int64_t tail = count % kRowStep;
        if (count > kRowStep && tail != 0 && choose(tail) != kernel) {
          count -= tail;
        }
        tiles.push_back({first, count, nullptr, nullptr, nullptr});
        first += count;
      } while (static_cast<int64_t>(tiles.size()) < most && first < num_rows &&
               choose(num_rows - first) == kernel);
      RunRound(*kernel, rows, &tiles);
    }
  }

  // Rows of a tile: as many tiles as keep every thread busy with all columns, so that no table is
  // built twice, but in whole steps.
  int64_t TileRows(const Kernel& kernel, int64_t num_rows) const {
    // A kernel of few rows may add in an order that depends on how many there are, which must not
    // depend on the threads.
    if (request_.num_parts > 0 || kernel.max_rows <= 2 * kRowStep) return kernel.max_rows;
    const int64_t threads = host_->NumThreads();
    const int64_t num_tiles = CeilDiv(CeilDiv(num_rows, kernel.max_rows), threads) * threads;
    const int64_t rows = CeilDiv(CeilDiv(num_rows, kRowStep), num_tiles) * kRowStep;
    return std::min(rows, kernel.max_rows);
  }

  int64_t MaxTiles(const Kernel& kernel, int64_t num_rows) const {
    const int64_t rows = std::min(num_rows, kernel.max_rows);
    const size_t bytes = Align(kernel.prepared_bytes(&layer_, rows)) +
                         Align(kernel.scratch_bytes(&layer_, rows, layer_.N)) +
                         static_cast<size_t>(rows * (layer_.K + layer_.N)) * sizeof(float);
    const int64_t near = host_->NumThreads() *
                         std::max<int64_t>(1, static_cast<int64_t>(kRoundBytesPerThread / bytes));
    return std::clamp<int64_t>(static_cast<int64_t>(kMaxRoundBytes / bytes), 1, near);
  }

  // Columns of a part: a multiple of the kernel's step.
  int64_t PartColumns(const Kernel& kernel, const std::vector<Tile>& tiles) const {
    const int64_t step = kernel.column_step;
    const int64_t rows = tiles.front().rows;
    const int64_t num_tiles = static_cast<int64_t>(tiles.size());
    const int64_t threads = host_->NumThreads();
    int64_t num_parts = request_.num_parts;
    const bool even = num_tiles % threads == 0 && tiles.back().rows == rows;
    if (num_parts <= 0 && !even) {
      const int64_t work_columns = CeilDiv(kMinWorkPerItem, rows * layer_.K);
      const int64_t columns = rows >= kTableRows ? kWideColumns : kNarrowColumns;
      num_parts = std::min(CeilDiv(kItemsPerThread * threads, num_tiles),
                           layer_.N / std::max(columns, work_columns));
      // Rather narrow parts than idle threads.
      num_parts = std::max(num_parts, std::min(CeilDiv(threads, num_tiles),
                                               layer_.N / std::max(kNarrowColumns, work_columns)));
      // The same number of parts for each thread.
      if (num_tiles == 1 && num_parts > threads) num_parts = num_parts / threads * threads;
    }
    num_parts = std::max<int64_t>(1, num_parts);
    return CeilDiv(CeilDiv(layer_.N, num_parts), step) * step;
  }

  void RunRound(const Kernel& kernel, const int64_t* rows, std::vector<Tile>* tiles) {
    const int64_t num_tiles = static_cast<int64_t>(tiles->size());
    const int64_t tile_rows = tiles->front().rows;
    const int64_t part_columns = PartColumns(kernel, *tiles);
    const int64_t num_parts = CeilDiv(layer_.N, part_columns);
    const auto row_at = [&](int64_t position) { return rows ? rows[position] : position; };

    // One allocation: what a tile needs, then the scratch of each worker.
    const int64_t num_items = num_tiles * num_parts;
    const int64_t num_workers = std::min(host_->NumThreads(), num_items);
    size_t tile_bytes = 0;
    const auto reserve = [&](size_t bytes) {
      const size_t offset = tile_bytes;
      tile_bytes += Align(bytes);
      return offset;
    };
    const size_t prepared_offset = reserve(kernel.prepared_bytes(&layer_, tile_rows));
    const auto in_place = [&](const Tile& tile) {
      return request_.type == ElementType::float32 &&
             row_at(tile.first + tile.rows - 1) - row_at(tile.first) == tile.rows - 1;
    };
    const bool copies = !std::all_of(tiles->begin(), tiles->end(), in_place);
    const size_t row_count = copies ? static_cast<size_t>(tile_rows) : 0;
    const size_t x_offset = reserve(row_count * static_cast<size_t>(layer_.K) * sizeof(float));
    const size_t y_offset = reserve(row_count * static_cast<size_t>(layer_.N) * sizeof(float));
    const size_t scratch_bytes = Align(kernel.scratch_bytes(&layer_, tile_rows, part_columns));
    const size_t scratch_offset = tile_bytes * static_cast<size_t>(num_tiles);
    Buffer buffer(host_, scratch_offset + scratch_bytes * static_cast<size_t>(num_workers));

    const auto prepare = [&](int64_t t) noexcept {
      Tile& tile = (*tiles)[static_cast<size_t>(t)];
      uint8_t* memory = buffer.data() + tile_bytes * static_cast<size_t>(t);
      if (in_place(tile)) {
        tile.x = static_cast<const float*>(XRow(row_at(tile.first)));
        tile.y = static_cast<float*>(YElement(row_at(tile.first), 0));
      } else {
        float* x = reinterpret_cast<float*>(memory + x_offset);
        for (int64_t i = 0; i < tile.rows; ++i) {
          LoadRow(request_.type, XRow(row_at(tile.first + i)), layer_.K, x + i * layer_.K);
        }
        tile.x = x;
        tile.y = reinterpret_cast<float*>(memory + y_offset);
      }
      tile.prepared = memory + prepared_offset;
      kernel.prepare(&layer_, &call_, tile.x, tile.rows, tile.prepared);
    };
    const auto compute = [&](int64_t item, uint8_t* scratch) noexcept {
      const Tile& tile = (*tiles)[static_cast<size_t>(item / num_parts)];
      const int64_t begin = item % num_parts * part_columns;
      const int64_t end = std::min(layer_.N, begin + part_columns);
      kernel.compute(&layer_, tile.x, tile.rows, tile.prepared, begin, end, tile.y, scratch);
      if (layer_.column_sums) FinishUnsigned(layer_, call_, tile.rows, begin, end, tile.y);
      if (in_place(tile)) return;
      for (int64_t i = 0; i < tile.rows; ++i) {
        StoreRow(request_.type, tile.y + i * layer_.N + begin, end - begin,
                 YElement(row_at(tile.first + i), begin));
      }
    };

    // One parallel region: workers take tiles to prepare, then items. An item waits for its tile,
    // which a worker that is running took before any item.
    std::atomic<int64_t> next_tile{0};
    std::atomic<int64_t> next_item{0};
    std::unique_ptr<std::atomic<bool>[]> ready(
        new std::atomic<bool>[static_cast<size_t>(num_tiles)]);
    for (int64_t t = 0; t < num_tiles; ++t) ready[static_cast<size_t>(t)] = false;
    ParallelFor(host_, num_workers, [&](int64_t worker) noexcept {
      uint8_t* scratch =
          buffer.data() + scratch_offset + scratch_bytes * static_cast<size_t>(worker);
      const auto prepare_next = [&] {
        const int64_t t = next_tile.fetch_add(1, std::memory_order_relaxed);
        if (t >= num_tiles) return;
        prepare(t);
        ready[static_cast<size_t>(t)].store(true, std::memory_order_release);
      };
      prepare_next();
      for (;;) {
        const int64_t item = next_item.fetch_add(1, std::memory_order_relaxed);
        if (item >= num_items) return;
        const std::atomic<bool>& tile_ready = ready[static_cast<size_t>(item / num_parts)];
        while (!tile_ready.load(std::memory_order_acquire)) {
          if (next_tile.load(std::memory_order_relaxed) < num_tiles) {
            prepare_next();
          } else {
            std::this_thread::yield();
          }
        }
        compute(item, scratch);
      }
    });
  }

  const Layer& layer_;
  const RunRequest& request_;
  Host* host_;
  std::vector<const Kernel*>* used_;
  Call call_ = {};
  std::vector<RowKind> kinds_;
};

}  // namespace

void Run(const Layer& layer, const RunRequest& request, Host* host,
         std::vector<const Kernel*>* used) {
  Runner(layer, request, host, used).Run();
}

}  // namespace onnx_ternary
