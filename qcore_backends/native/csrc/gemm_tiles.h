// Matrix products of bytes by AMX: two tiles of 16 rows times two panels of 16 columns, 64 bytes of
// depth at a time. The outputs of one block are computed between the products of the next, since
// vectors and tiles are different units of the processor.

#pragma once

#include "gemm_vectors.h"

namespace qcore {
namespace QCORE_ISA {

// A block of sums [32][32] whose outputs are still to be computed.
struct PendingBlock {
  const int32_t* sums = nullptr;
  int64_t row = 0, column = 0;
  int panels = 1, done = 0, total = 0;

  void advance(const GemmTask& task, const Epilogue& epilogue, int count) {
    const int end = total < done + count ? total : done + count;
    for (; done < end; ++done) {
      const int i = panels == 2 ? done >> 1 : done;
      const int j = panels == 2 ? done & 1 : 0;
      const int64_t n = column + j * kLanes;
      const i32x16 acc = load<i32x16>(sums + i * 32 + j * kLanes) +
                         load<i32x16>(task.bias + n) + task.row_term(row + i);
      epilogue.finish(acc, load<f32x16>(task.scale + n), task.row + row + i, n, task.valid(n));
    }
  }
};

template <bool kTwoRows, bool kTwoPanels>
inline void multiply_tile_block(const uint8_t* x, int64_t x_row, const int8_t* w,
                                int64_t panel_bytes, int64_t depth, int32_t* sums,
                                const GemmTask& task, const Epilogue& epilogue,
                                PendingBlock& pending) {
  const int64_t steps = depth / 64;
  const int share = static_cast<int>((pending.total + steps - 1) / steps);
  _tile_zero(0);
  if constexpr (kTwoPanels) _tile_zero(1);
  if constexpr (kTwoRows) _tile_zero(2);
  if constexpr (kTwoRows && kTwoPanels) _tile_zero(3);
  for (int64_t k = 0; k < steps; ++k) {
    _tile_loadd(4, x + k * 64, x_row);
    _tile_loadd(6, w + k * 1024, 64);
    _tile_dpbusd(0, 4, 6);
    if constexpr (kTwoPanels) {
      _tile_loadd(7, w + panel_bytes + k * 1024, 64);
      _tile_dpbusd(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      _tile_loadd(5, x + 16 * x_row + k * 64, x_row);
      _tile_dpbusd(2, 5, 6);
      if constexpr (kTwoPanels) _tile_dpbusd(3, 5, 7);
    }
    pending.advance(task, epilogue, share);
  }
  _tile_stored(0, sums, 128);
  if constexpr (kTwoPanels) _tile_stored(1, sums + 16, 128);
  if constexpr (kTwoRows) _tile_stored(2, sums + 16 * 32, 128);
  if constexpr (kTwoRows && kTwoPanels) _tile_stored(3, sums + 16 * 32 + 16, 128);
}

// `sums` has room for two blocks of 32 x 32.
inline void multiply_tiles(const GemmTask& task, const Epilogue& epilogue, int64_t depth,
                           int32_t* sums) {
  PendingBlock pending;
  int which = 0;
  for (int64_t p = 0; p < task.panels; p += 2) {
    const bool two_panels = p + 2 <= task.panels;
    const int8_t* w = task.weight + p * task.panel_bytes;
    for (int64_t r = 0; r < task.rows; r += 32, which ^= 1) {
      const bool two_rows = r + 16 < task.rows;
      const uint8_t* x = task.x + r * task.x_row;
      int32_t* block = sums + which * 32 * 32;
      auto multiply_these = two_rows ? (two_panels ? multiply_tile_block<true, true>
                                                   : multiply_tile_block<true, false>)
                                     : (two_panels ? multiply_tile_block<false, true>
                                                   : multiply_tile_block<false, false>);
      multiply_these(x, task.x_row, w, task.panel_bytes, depth, block, task, epilogue, pending);
      pending.sums = block;
      pending.row = r;
      pending.column = (task.panel + p) * kLanes;
      pending.panels = two_panels ? 2 : 1;
      pending.done = 0;
      pending.total = static_cast<int>(min(32, task.rows - r)) * pending.panels;
    }
  }
  pending.advance(task, epilogue, pending.total);
}

// Eight tiles of 16 rows of 64 bytes. Constant memory: compilers see only the first bytes of what the
// intrinsic reads, and drop other writes to a local.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

inline void begin_tiles() { _tile_loadconfig(&kTileConfig); }

inline void end_tiles() { _tile_release(); }

}  // namespace QCORE_ISA
}  // namespace qcore
