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
  int64_t row = 0, column = 0, done = 0, rows = 0;
  bool two_panels = true;

  // The outputs of `count` more rows.
  void advance(const GemmTask& task, const Epilogue& epilogue, int64_t count) {
    count = min(count, rows - done);
    if (count <= 0) return;
    const int32_t* from = sums + done * 32;
    if (two_panels) {
      finish_rows<2>(task, epilogue, from, 32, row + done, count, column);
    } else {
      finish_rows<1>(task, epilogue, from, 32, row + done, count, column);
    }
    done += count;
  }
};

template <bool kTwoRows, bool kTwoPanels>
inline void multiply_tile_block(const uint8_t* x, int64_t x_row, const int8_t* w,
                                int64_t panel_bytes, int64_t depth, int32_t* sums,
                                const GemmTask& task, const Epilogue& epilogue,
                                PendingBlock& pending) {
  const int64_t steps = depth / 64;
  const int64_t share = (pending.rows + steps - 1) / steps;
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
      pending.two_panels = two_panels;
      pending.done = 0;
      pending.rows = min(32, task.rows - r);
    }
  }
  pending.advance(task, epilogue, pending.rows);
}

// Eight tiles of 16 rows of 64 bytes. Constant memory: compilers see only the first bytes of what
// the intrinsic reads, and drop other writes to a local.
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
