// Convolutions of each channel by itself, 16 channels at a time.
//
// Four rows of the image are interleaved to words of four bytes once for each column; each output
// then takes one product of words for every column of its window.

#pragma once

#include "gemm.h"

namespace qcore {
namespace QCORE_ISA {

struct DepthwiseKernel {
  static int64_t tasks(const Depthwise& op) { return op.batch * op.window.out_h; }

  static int64_t groups(const Depthwise& op) { return (op.window.kernel_h + 3) / 4; }
  static int64_t columns(const Depthwise& op) {
    const Window& window = op.window;
    return (window.out_w - 1) * window.stride_w + (window.kernel_w - 1) * window.dilation_w + 1;
  }
  static int64_t scratch(const Depthwise& op) { return groups(op) * columns(op) * 64; }

  static void run(const Depthwise& op, int64_t task, const Context& context) {
    const Window& window = op.window;
    const int64_t image = task / window.out_h, out_y = task % window.out_h;
    const int64_t image_bytes = window.h * window.w * window.pixel;
    const uint8_t* x = at<const uint8_t>(context, op.x) + image * image_bytes;
    const int8_t* weight = at<const int8_t>(context, op.weight);
    const int32_t* bias = at<const int32_t>(context, op.bias);
    const float* scale = at<const float>(context, op.scale);
    const Epilogue epilogue(op.output, context);
    i32x16* words = reinterpret_cast<i32x16*>(context.scratch);
    const int64_t width = columns(op), row = task * window.out_w;

    for (int64_t c = 0; c < op.channels; c += kLanes) {
      for (int64_t g = 0; g < groups(op); ++g) {
        interleave_rows(op, x + c, out_y * window.stride_h - window.pad_h, g, words + g * width);
      }
      const Columns columns = {words, width, weight + c * 4, op.channels_padded * 4,
                               load<i32x16>(bias + c), load<f32x16>(scale + c)};
      const int count = static_cast<int>(min(kLanes, op.channels - c));
      const bool common = groups(op) == 1 && window.kernel_w == 3 && count == kLanes;
      if (common && epilogue.mode() == Epilogue::Mode::bytes) {
        output_row<3>(op, columns, epilogue, row, c, count);
      } else {
        output_row<0>(op, columns, epilogue, row, c, count);
      }
    }
  }

 private:
  // What one row of outputs of 16 channels is computed from.
  struct Columns {
    const i32x16* words;
    int64_t width;
    const int8_t* weight;
    int64_t weight_step;
    i32x16 start;
    f32x16 scale;
  };

  // kTaps columns of a kernel of up to four rows, whose weights stay in registers, and 16 channels
  // to bytes; 0 for anything else. The epilogue is a copy, which stores can't change.
  template <int kTaps>
  static void output_row(const Depthwise& op, const Columns& from, const Epilogue epilogue,
                         int64_t row, int64_t c, int count) {
    const int64_t stride = op.window.stride_w, dilation = op.window.dilation_w;
    const int64_t taps = op.window.kernel_w, depth = groups(op), out_w = op.window.out_w;
    i32x16 kernel[kTaps ? kTaps : 1];
    for (int j = 0; j < kTaps; ++j) kernel[j] = load<i32x16>(from.weight + j * from.weight_step);
    const i32x16* column = from.words;
    const i32x16 start = from.start;
    const f32x16 scale = from.scale;
    for (int64_t out_x = 0; out_x < out_w; ++out_x, column += stride) {
      i32x16 acc = start;
      if constexpr (kTaps > 0) {
#pragma GCC unroll 8
        for (int j = 0; j < kTaps; ++j) acc = dot4(acc, column[j * dilation], kernel[j]);
        epilogue.finish_lanes<Epilogue::Mode::bytes>(acc, scale, row + out_x, c);
      } else {
        const int8_t* w = from.weight;
        for (int64_t j = 0; j < taps; ++j) {
          for (int64_t g = 0; g < depth; ++g, w += from.weight_step) {
            acc = dot4(acc, column[j * dilation + g * from.width], load<i32x16>(w));
          }
        }
        epilogue.finish(acc, scale, row + out_x, c, count);
      }
    }
  }

  // Rows 4 g to 4 g + 3 of the windows that start at row `top`; padding where the image ends.
  static void interleave_rows(const Depthwise& op, const uint8_t* x, int64_t top, int64_t g,
                              i32x16* words) {
    const Window& window = op.window;
    const uint8_t value = static_cast<uint8_t>(op.padding_value);
    uint8_t padding[kLanes];
    std::memset(padding, value, sizeof(padding));
    const uint8_t* lines[4];
    int64_t step[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t y = top + (4 * g + i) * window.dilation_h;
      const bool inside = 4 * g + i < window.kernel_h && y >= 0 && y < window.h;
      lines[i] = inside ? x + y * window.w * window.pixel : padding;
      step[i] = inside ? window.pixel : 0;
    }
    const i32x16 outside = every(static_cast<int32_t>(value * 0x01010101u));
    const int64_t width = columns(op);
    const int64_t begin = min(window.pad_w, width);
    const int64_t end = max(begin, min(width, window.w + window.pad_w));
    int64_t column = 0;
    for (; column < begin; ++column) words[column] = outside;
    for (; column < end; ++column) {
      words[column] = interleave(load<u8x16>(lines[0]), load<u8x16>(lines[1]),
                                 load<u8x16>(lines[2]), load<u8x16>(lines[3]));
      for (int i = 0; i < 4; ++i) lines[i] += step[i];
    }
    for (; column < width; ++column) words[column] = outside;
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
