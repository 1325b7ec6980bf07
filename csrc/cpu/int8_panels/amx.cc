// AMX: one instruction multiplies a tile of 16 outputs x 64 inputs with one of 64 inputs x 16 token
// slots. A tile of activations is read straight from a grouped panel (rows 256 bytes apart), a tile
// of sums is stored straight to acc.
//
// A block of two bands is worked on in chunks of columns whose tiles stay in the L1 cache while the
// panels pass. Meanwhile the next chunk is prepared, a few rows beside each column's products:
// fetched from memory (kTiles), or expanded into the other half of the scratch (kTileBits).
#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/int8_panels/amx_pass.h"

// Activations that pass again and again should leave room for the rest in the L2 cache of 2 MB.
constexpr std::int64_t kPassingBytes = 1024 * 1024;

SPARSE_RUNTIME_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

// The chunks of a call, block after block.
class Chunks {
 public:
  SPARSE_RUNTIME_INLINE Chunks(const WeightView& w, const Call& call, std::int64_t most_tiles)
      : w_(w), call_(call), most_tiles_(most_tiles) {
    begin_block();
  }

  SPARSE_RUNTIME_INLINE bool done() const { return row_ == call_.rows; }

  SPARSE_RUNTIME_INLINE Chunk next() {
    Chunk chunk;
    chunk.row = row_;
    chunk.first = taken_[0] + taken_[1] == 0;
    chunk.common = smaller(common_left_, chunk_tiles_ / 2);
    common_left_ -= chunk.common;
    std::int64_t room = chunk_tiles_ - 2 * chunk.common;
    for (int band = 0; band < 2; ++band) {
      const std::int64_t left = tiles_[band] - taken_[band] - chunk.common;
      const std::int64_t alone = common_left_ == 0 ? smaller(room, left) : 0;
      room -= alone;
      chunk.first_tile[band] = starts()[band] + taken_[band];
      chunk.count[band] = chunk.common + alone;
      taken_[band] += chunk.count[band];
    }
    if (taken_[0] == tiles_[0] && taken_[1] == tiles_[1]) {
      row_ += kRowBlock;
      begin_block();
    }
    return chunk;
  }

 private:
  SPARSE_RUNTIME_INLINE const std::int32_t* starts() const {
    return w_.starts + (call_.row + row_) / kRows;
  }

  SPARSE_RUNTIME_INLINE void begin_block() {
    if (done()) return;
    for (int band = 0; band < 2; ++band) {
      tiles_[band] = starts()[band + 1] - starts()[band];
      taken_[band] = 0;
    }
    const std::uint16_t* columns = w_.index + starts()[0];
    common_left_ = 0;
    while (common_left_ < smaller(tiles_[0], tiles_[1]) &&
           columns[common_left_] == columns[tiles_[0] + common_left_]) {
      ++common_left_;
    }
    // As many as needed, equally large, even: columns of both bands are not divided.
    const std::int64_t tiles = tiles_[0] + tiles_[1];
    const std::int64_t chunks = (tiles + most_tiles_ - 1) / most_tiles_;
    chunk_tiles_ = chunks == 0 ? 0 : ((tiles + chunks - 1) / chunks + 1) / 2 * 2;
  }

  const WeightView& w_;
  const Call& call_;
  const std::int64_t most_tiles_;  // of a chunk
  std::int64_t row_ = 0;           // of the call
  std::int64_t tiles_[2];
  std::int64_t taken_[2];
  std::int64_t common_left_;
  std::int64_t chunk_tiles_;
};

// Prepares a chunk a quarter of a tile at a time. Source supplies
//   void begin(tile)         the next four quarters are this tile's
//   void quarter(number)
template <class Source>
class Preparation {
 public:
  SPARSE_RUNTIME_INLINE Preparation(Source& source, const Chunk& chunk,
                                    std::int64_t quarters_a_step)
      : source_(source),
        tile_(chunk.first_tile[0]),
        tiles_left_(chunk.count[0]),
        then_tile_(chunk.first_tile[1]),
        then_tiles_(chunk.count[1]),
        quarters_left_(4 * (chunk.count[0] + chunk.count[1])),
        quarters_a_step_(quarters_a_step) {}

  SPARSE_RUNTIME_INLINE void step() { work(smaller(quarters_left_, quarters_a_step_)); }
  SPARSE_RUNTIME_INLINE void finish() {
    work(quarters_left_);
    // The compiler does not know that tile loads read memory.
    __asm__ volatile("" ::: "memory");
  }

 private:
  SPARSE_RUNTIME_INLINE void work(std::int64_t quarters) {
    quarters_left_ -= quarters;
    for (; quarters > 0; --quarters) {
      if (quarter_ == 0) begin_tile();
      source_.quarter(quarter_);
      quarter_ = (quarter_ + 1) % 4;
    }
  }

  SPARSE_RUNTIME_INLINE void begin_tile() {
    if (tiles_left_ == 0) {
      tile_ = then_tile_;
      tiles_left_ = then_tiles_;
    }
    source_.begin(tile_);
    ++tile_;
    --tiles_left_;
  }

  Source& source_;
  std::int64_t tile_;
  std::int64_t tiles_left_;
  std::int64_t then_tile_;
  std::int64_t then_tiles_;
  std::int64_t quarters_left_;
  std::int64_t quarters_a_step_;
  int quarter_ = 0;
};

// kTiles: the tiles are used where they lie; preparing fetches them into the L2 cache.
class StoredTiles {
 public:
  static constexpr std::int64_t kChunkTiles = 32;

  SPARSE_RUNTIME_INLINE StoredTiles(const WeightView& w, const Call&) : w_(w) {}
  SPARSE_RUNTIME_INLINE void switch_to(const Chunk& chunk, const std::int8_t* (&tiles)[2]) {
    for (int band = 0; band < 2; ++band) {
      tiles[band] = w_.values + chunk.first_tile[band] * kTileBytes;
    }
  }
  SPARSE_RUNTIME_INLINE void begin(std::int64_t tile) { next_ = w_.values + tile * kTileBytes; }
  SPARSE_RUNTIME_INLINE void quarter(int) {
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) __builtin_prefetch(next_ + line * kRowBytes, 0, 2);
    next_ += 4 * kRowBytes;
  }

 private:
  const WeightView& w_;
  const std::int8_t* next_ = nullptr;
};

// kTileBits: preparing expands the tiles into that half of the scratch which the products do not
// read at the time.
class ExpandedTiles {
 public:
  // Both halves in the L1 cache: 32 tiles made 768 columns 14 % slower.
  static constexpr std::int64_t kChunkTiles = 24;

  SPARSE_RUNTIME_INLINE ExpandedTiles(const WeightView& w, const Call& call)
      : w_(w),
        half_{static_cast<std::int8_t*>(call.scratch),
              static_cast<std::int8_t*>(call.scratch) + kHalfBytes},
        to_(half_[0]) {}

  // From now on the chunk just prepared is multiplied and the other half filled.
  SPARSE_RUNTIME_INLINE void switch_to(const Chunk& chunk, const std::int8_t* (&tiles)[2]) {
    tiles[0] = half_[filling_];
    tiles[1] = half_[filling_] + chunk.count[0] * kTileBytes;
    filling_ = 1 - filling_;
    to_ = half_[filling_];
  }

  SPARSE_RUNTIME_INLINE void begin(std::int64_t tile) {
    mask_ = w_.masks + tile * kRows;
    from_ = w_.values + w_.offsets[tile];
  }

  SPARSE_RUNTIME_INLINE void quarter(int number) {
    __builtin_prefetch(number % 2 == 0 ? reinterpret_cast<const char*>(mask_) + kAhead
                                       : reinterpret_cast<const char*>(from_) + kAhead);
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
      const __m512i bytes = _mm512_loadu_si512(from_);
      _mm512_store_si512(to_ + row * kRowBytes, _mm512_maskz_expand_epi8(mask_[row], bytes));
      from_ += __builtin_popcountll(mask_[row]);
    }
    mask_ += 4;
    to_ += 4 * kRowBytes;
  }

 private:
  static constexpr std::int64_t kAhead = 2048;
  // Half a page more than the tiles: what is stored to one half would else lie as far into a page
  // as what is loaded from the other, and loads wait for such stores.
  static constexpr std::int64_t kHalfBytes = kChunkTiles * kTileBytes + 2048;
  static_assert(2 * kHalfBytes <= kScratchBytes);
  const WeightView& w_;
  std::int8_t* const half_[2];
  int filling_ = 0;
  std::int8_t* to_;
  const std::uint64_t* mask_ = nullptr;
  const std::int8_t* from_ = nullptr;
};

SPARSE_RUNTIME_INLINE std::int64_t pass_count(const Call& call) {
  return (call.panels - 1) * (panels::kVectors / 2) + (call.last_vectors + 1) / 2;
}

// acc (of the chunk's block) += or, for the first chunk of a block, = the chunk's products.
template <class Aside>
SPARSE_RUNTIME_INLINE void multiply_panels(const WeightView& w, const Call& call,
                                           const Chunk& chunk, const std::int8_t* const (&tiles)[2],
                                           Aside& aside) {
  Operands o;
  for (int band = 0; band < 2; ++band) {
    o.tiles[band] = tiles[band];
    o.columns[band] = w.index + chunk.first_tile[band];
  }
  for (int panel = 0; panel < call.panels; ++panel) {
    const int vectors = panel + 1 < call.panels ? panels::kVectors : call.last_vectors;
    o.x = call.x + panel * call.panel_stride;
    o.acc = call.acc + (panel * call.rows + chunk.row) * panels::kSlots;
    for (int vector = 0; vector < vectors; vector += 2) {
      if (vector + 1 < vectors) {
        multiply<2>(chunk, o, aside);
      } else {
        multiply<1>(chunk, o, aside);
      }
      o.x += 2 * kRowBytes;
      o.acc += 2 * panels::kVector;
    }
  }
}

template <class Source>
SPARSE_RUNTIME_INLINE void accumulate_some_panels(const WeightView& w, const Call& call) {
  Chunks chunks(w, call, Source::kChunkTiles);
  if (chunks.done()) return;
  Source source(w, call);
  Chunk chunk = chunks.next();
  Preparation<Source>(source, chunk, 0).finish();
  for (;;) {
    const std::int8_t* tiles[2];
    source.switch_to(chunk, tiles);
    const bool last = chunks.done();
    Chunk next{};
    if (!last) next = chunks.next();
    const std::int64_t steps =
        pass_count(call) * (chunk.count[0] + chunk.count[1] - chunk.common) + 1;
    const std::int64_t quarters = 4 * (next.count[0] + next.count[1]);
    Preparation<Source> preparation(source, next, (quarters + steps - 1) / steps);
    multiply_panels(w, call, chunk, tiles, preparation);
    preparation.finish();
    if (last) return;
    chunk = next;
  }
}

template <class Source>
void accumulate(const WeightView& w, const Call& call) {
  const std::int64_t at_once = call.panel_stride > 0 ? kPassingBytes / call.panel_stride : 1;
  _tile_loadconfig(&kConfig);
  for (std::int64_t panel = 0; panel < call.panels;) {
    Call some = call;
    some.panels = static_cast<int>(smaller(call.panels - panel, at_once > 1 ? at_once : 1));
    some.x += panel * call.panel_stride;
    some.acc += panel * call.rows * panels::kSlots;
    panel += some.panels;
    if (panel < call.panels) some.last_vectors = panels::kVectors;
    accumulate_some_panels<Source>(w, some);
  }
  _tile_release();
}

// Tiles as they come in a model: the unit is faster on equal bytes.
std::int64_t peak(std::int64_t rounds) {
  alignas(64) std::uint8_t bytes[4][kTileBytes];
  std::uint32_t state = 1;
  for (auto& tile : bytes) {
    for (std::uint8_t& byte : tile) {
      state = state * 1664525u + 1013904223u;
      byte = static_cast<std::uint8_t>(state >> 24);
    }
  }
  // The tile instructions say nothing of the memory they read.
  asm volatile("" ::"r"(bytes) : "memory");
  _tile_loadconfig(&kConfig);
  _tile_loadd(4, bytes[0], kRowBytes);
  _tile_loadd(5, bytes[1], kRowBytes);
  _tile_loadd(6, bytes[2], kRowBytes);
  _tile_loadd(7, bytes[3], kRowBytes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t round = 0; round < rounds; ++round) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_release();
  return rounds * (4 * 2 * 16 * 16 * 64);
}

}  // namespace

const Kernels kAmxKernels = {{nullptr, nullptr, nullptr, nullptr, nullptr, accumulate<StoredTiles>,
                              accumulate<ExpandedTiles>},
                             peak};

}  // namespace sparse_runtime::int8_panels
