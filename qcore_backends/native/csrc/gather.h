// Rows of a convolution's windows, so that it becomes a matrix product.

#pragma once

#include "epilogue.h"

namespace qcore {
namespace QCORE_ISA {

template <int kBytes>
inline void copy_by(uint8_t* to, const uint8_t* from, int64_t count) {
  struct Chunk {
    uint8_t bytes[kBytes];
  };
  for (int64_t i = 0; i < count; i += kBytes) store(to + i, load<Chunk>(from + i));
}

// Copies whole chunks: up to 63 bytes more than `count` are read and written. The rows are written
// in order, so the next copy mends that; memory has room behind its last row. Short runs go by
// chunks that cross fewer cache lines.
inline void copy_run(uint8_t* to, const uint8_t* from, int64_t count) {
  if (count <= 32) {
    copy_by<16>(to, from, count);
  } else {
    copy_by<64>(to, from, count);
  }
}

// Writes rows [begin, end) of the windows to `to`, `row_bytes` apart.
inline void gather_rows(const Window& window, const uint8_t* image, int64_t channels,
                        uint8_t padding, int64_t begin, int64_t end, uint8_t* to,
                        int64_t row_bytes) {
  const int64_t area = window.out_h * window.out_w;
  const int64_t image_bytes = window.h * window.w * window.pixel;
  // Neighbouring taps of a row are neighbours in memory.
  const bool runs = window.dilation_w == 1 && window.pixel == channels;
  int64_t out_x = begin % window.out_w, out_y = begin / window.out_w % window.out_h;
  const uint8_t* x = image + begin / area * image_bytes;
  for (int64_t row = begin; row < end; ++row, to += row_bytes) {
    const int64_t top = out_y * window.stride_h - window.pad_h;
    const int64_t left = out_x * window.stride_w - window.pad_w;
    uint8_t* target = to;
    for (int64_t i = 0; i < window.kernel_h; ++i) {
      const int64_t at_y = top + i * window.dilation_h;
      const uint8_t* line = x + at_y * window.w * window.pixel;
      if (at_y < 0 || at_y >= window.h) {
        std::memset(target, padding, window.kernel_w * channels);
        target += window.kernel_w * channels;
      } else if (runs && left >= 0 && left + window.kernel_w <= window.w) {
        copy_run(target, line + left * window.pixel, window.kernel_w * channels);
        target += window.kernel_w * channels;
      } else {
        for (int64_t j = 0; j < window.kernel_w; ++j, target += channels) {
          const int64_t at_x = left + j * window.dilation_w;
          if (at_x < 0 || at_x >= window.w) {
            std::memset(target, padding, channels);
          } else {
            copy_run(target, line + at_x * window.pixel, channels);
          }
        }
      }
    }
    if (++out_x == window.out_w) {
      out_x = 0;
      if (++out_y == window.out_h) {
        out_y = 0;
        x += image_bytes;
      }
    }
  }
}

struct GatherKernel {
  static int64_t tasks(const Gather& op) { return (op.rows + op.rows_a_task - 1) / op.rows_a_task; }
  static int64_t scratch(const Gather& op) { return op.depth_padded + 64; }

  static void run(const Gather& op, int64_t task, const Context& context) {
    // The last row of a task must not spill into the first of the next, which another thread
    // writes.
    const int64_t begin = task * op.rows_a_task;
    const int64_t end = min(begin + op.rows_a_task, op.rows);
    uint8_t* rows = reinterpret_cast<uint8_t*>(context.scratch);
    uint8_t* y = at<uint8_t>(context, op.y);
    for (int64_t row = begin; row < end; ++row) {
      gather_rows(op.window, at<const uint8_t>(context, op.x), op.channels,
                  static_cast<uint8_t>(op.padding_value), row, row + 1, rows, op.depth_padded);
      std::memcpy(y + row * op.depth_padded, rows, op.depth_padded);
    }
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
