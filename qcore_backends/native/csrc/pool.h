// Pools over images whose channels are neighbours in memory.

#pragma once

#include "elementwise.h"

namespace qcore {
namespace QCORE_ISA {

struct MaxPoolKernel {
  static int64_t tasks(const Pool& op) { return op.batch * op.window.out_h; }
  static int64_t scratch(const Pool&) { return 0; }

  static void run(const Pool& op, int64_t task, const Context& context) {
    const Window& window = op.window;
    const int64_t image = task / window.out_h, out_y = task % window.out_h;
    const int64_t image_bytes = window.h * window.w * window.pixel;
    const uint8_t* x = at<const uint8_t>(context, op.x) + image * image_bytes;
    uint8_t* y = at<uint8_t>(context, op.output.y) + task * window.out_w * op.channels;
    for (int64_t out_x = 0; out_x < window.out_w; ++out_x, y += op.channels) {
      std::memset(y, 0, op.channels);
      for (int64_t i = 0; i < window.kernel_h; ++i) {
        const int64_t at_y = out_y * window.stride_h - window.pad_h + i * window.dilation_h;
        if (at_y < 0 || at_y >= window.h) continue;
        for (int64_t j = 0; j < window.kernel_w; ++j) {
          const int64_t at_x = out_x * window.stride_w - window.pad_w + j * window.dilation_w;
          if (at_x < 0 || at_x >= window.w) continue;
          raise(y, x + (at_y * window.w + at_x) * window.pixel, op.channels);
        }
      }
    }
  }

 private:
  static void raise(uint8_t* __restrict y, const uint8_t* __restrict x, int64_t count) {
    for (int64_t c = 0; c < count; ++c) y[c] = x[c] > y[c] ? x[c] : y[c];
  }
};

struct SumPoolKernel {
  static int64_t chunks(const Pool& op) { return (op.channels + kLanes - 1) / kLanes; }
  static int64_t tasks(const Pool& op) { return op.batch * chunks(op); }
  static int64_t scratch(const Pool&) { return 0; }

  static void run(const Pool& op, int64_t task, const Context& context) {
    const Window& window = op.window;
    const int64_t image = task / chunks(op), c = task % chunks(op) * kLanes;
    const int64_t area = window.h * window.w;
    const uint8_t* x = at<const uint8_t>(context, op.x) + image * area * window.pixel + c;
    i32x16 sum = load<i32x16>(at<const int32_t>(context, op.bias) + c);
    for (int64_t i = 0; i < area; ++i) sum += widen(load<u8x16>(x + i * window.pixel));
    const Epilogue epilogue(op.output, context);
    const int count = static_cast<int>(min(kLanes, op.channels - c));
    epilogue.finish(sum, load<f32x16>(at<const float>(context, op.scale) + c), image, c, count);
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
