// The right operand of a matrix product, made what the weight of a Gemm is.

#pragma once

#include "gemm.h"

namespace qcore {
namespace QCORE_ISA {

struct PackKernel {
  static int64_t panels(const Pack& op) { return (op.columns + kLanes - 1) / kLanes; }
  static int64_t tasks(const Pack& op) { return op.outer * op.inner * panels(op); }
  static int64_t scratch(const Pack&) { return 0; }

  static void run(const Pack& op, int64_t task, const Context& context) {
    const int64_t panel = task % panels(op), batch = task / panels(op);
    const int64_t inner = batch % op.inner, outer = batch / op.inner, n = panel * kLanes;
    const uint8_t* x = at<const uint8_t>(context, op.x) + outer * op.x_outer + inner * op.x_inner +
                       n * op.x_column;
    int8_t* y = at<int8_t>(context, op.y) + task * op.depth_padded * kLanes;
    int32_t* bias = at<int32_t>(context, op.bias) + task * kLanes;
    const int count = static_cast<int>(min(kLanes, op.columns - n));
    // Bytes less 128 are bytes with the highest bit flipped; padding must become zero.
    const i32x16 flip = every(static_cast<int32_t>(0x80808080u));
    const i32x16 ones = every(0x01010101);
    i32x16 sums{};
    for (int64_t k = 0; k < op.depth_padded; k += 4, y += 64) {
      const int taps = static_cast<int>(min(4, op.depth - k));
      i32x16 words{};
      if (taps > 0) words = read(op, x + k * op.x_depth, taps, count) ^ flip;
      if (taps > 0 && (taps < 4 || count < kLanes)) words = cut(words, taps, count);
      store(y, words);
      sums = dot4(sums, ones, words);
    }
    const i32x16 terms =
        static_cast<int32_t>(op.constant) - sums * static_cast<int32_t>(op.x_zero);
    store(bias, terms);
  }

 private:
  static i32x16 read(const Pack& op, const uint8_t* x, int taps, int count) {
    if (op.x_column == 1 && count == kLanes && taps == 4) {
      return interleave(load<u8x16>(x), load<u8x16>(x + op.x_depth),
                        load<u8x16>(x + 2 * op.x_depth), load<u8x16>(x + 3 * op.x_depth));
    }
    i32x16 words{};
    if (op.x_depth == 1 && taps == 4) {
      for (int j = 0; j < count; ++j) words[j] = load<int32_t>(x + j * op.x_column);
      return words;
    }
    for (int j = 0; j < count; ++j) {
      uint32_t word = 0;
      for (int i = 0; i < taps; ++i) {
        word |= static_cast<uint32_t>(x[i * op.x_depth + j * op.x_column]) << (8 * i);
      }
      words[j] = static_cast<int32_t>(word);
    }
    return words;
  }

  // Zeros behind the last column and the last row.
  static i32x16 cut(i32x16 words, int taps, int count) {
    const uint32_t mask = taps == 4 ? 0xFFFFFFFFu : (1u << (8 * taps)) - 1;
    for (int j = 0; j < kLanes; ++j) {
      words[j] = j < count ? static_cast<int32_t>(static_cast<uint32_t>(words[j]) & mask) : 0;
    }
    return words;
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
