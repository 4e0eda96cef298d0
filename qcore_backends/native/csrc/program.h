// The program that Python hands over: a list of operations on tensors that lie in numbered slots.
//
// Everything here is plain data, mirrored field by field in records.py. All sizes and strides are
// in elements unless a name says bytes. Integers between operations are always uint8: an int8 value
// v is kept as v + 128 with its zero point moved along, so no kernel needs to know of signs.

#pragma once

#include <cstdint>

namespace qcore {

// Where a tensor starts: byte `offset` in the memory of `slot`; slot < 0 stands for no tensor.
struct Ref {
  int64_t slot;
  int64_t offset;
};

enum class Kind : int64_t {
  gemm = 0,
  gather = 1,
  depthwise = 2,
  pack = 3,
  quantize = 4,
  dequantize = 5,
  add = 6,
  mul = 7,
  requantize = 8,
  table = 9,
  max_pool = 10,
  sum_pool = 11,
  copy = 12,
};

// From an accumulator to the output:
//   t = float(acc) * scale[n] + float(other - other_zero) * other_scale     each step rounded
//   y = rint(clamp(t, low, high)) + zero                                    or t itself as float32
// `low` and `high` are integers less `zero`, so clamping before rounding gives the same.
struct Output {
  Ref y;
  Ref other;
  int64_t y_row;
  int64_t other_row;
  float other_scale;
  int32_t other_zero;
  float low;
  float high;
  int32_t zero;
  int32_t is_float;
};

// The window of a convolution or pool over an image [h, w] of pixels that are `pixel` bytes apart.
struct Window {
  int64_t h, w, pixel;
  int64_t out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
};

// y[r, n] = finish(bias[n] + row_factor * sum_k x[r, k] + sum_k x[r, k] * w[n, k])
//
// `outer` x `inner` products of their own: outer is the batch of a matrix product, inner its heads
// or the groups of a convolution. Weights are int8 in panels [columns / 16][depth_padded /
// 4][16][4]; what pads them is zero, so what lies behind a row of x does no harm. With `gathers`,
// row r of x is what the window sees at output pixel r, taps first, `channels` each.
struct Gemm {
  Ref x;
  Ref weight;
  Ref bias;
  Ref scale;
  Output output;
  int64_t outer, inner;
  int64_t x_outer, x_inner;
  int64_t weight_outer, weight_inner;
  int64_t bias_outer, bias_inner;
  int64_t scale_inner;
  int64_t y_outer, y_inner;
  int64_t x_row;
  int64_t rows, columns, depth, depth_padded;
  int64_t rows_a_task, panels_a_task;
  int64_t channels;
  Window window;
  int32_t gathers;
  int32_t padding_value;
  int32_t row_factor;
  int32_t tiles;
};

// Rows of windows, as a Gemm gathers them, written out: y[r, depth_padded].
struct Gather {
  Ref x;
  Ref y;
  int64_t rows, channels, depth_padded;
  int64_t rows_a_task;
  Window window;
  int64_t padding_value;
};

// A convolution of each channel with its own kernel. Weights are words of four rows of the kernel:
// int8 [kernel_w][ceil(kernel_h / 4)][channels_padded][4].
struct Depthwise {
  Ref x;
  Ref weight;
  Ref bias;
  Ref scale;
  Output output;
  int64_t batch, channels, channels_padded;
  Window window;
  int64_t padding_value;
};

// The right operand of a matrix product, uint8 with any strides, as int8 panels of a Gemm, and its
// share of the accumulator: bias[n] = constant - x_zero * sum_k (b[k, n] - 128).
struct Pack {
  Ref x;
  Ref y;
  Ref bias;
  int64_t outer, inner;
  int64_t x_outer, x_inner, x_depth, x_column;
  int64_t depth, depth_padded, columns;
  int64_t x_zero, constant;
};

constexpr int kDims = 5;

// float32 of any strides to dense uint8, or 4-byte or 1-byte elements of any strides to any others.
struct Move {
  Ref x;
  Ref y;
  int64_t size[kDims];
  int64_t x_stride[kDims];
  int64_t y_stride[kDims];
  int64_t element_bytes;
  int64_t flip;
  float scale;
  float low;
  float high;
  int32_t zero;
};

// Dense tensors of `count` elements: add, mul, requantize, table and dequantize.
struct Elementwise {
  Ref a;
  Ref b;
  Ref y;
  Ref table;
  int64_t count;
  int32_t a_zero, b_zero;
  float a_scale, b_scale;
  float low, high;
  int32_t zero;
  int32_t is_float;
};

// max_pool: the largest value of each window.
// sum_pool: one sum a channel over the whole image of h * w pixels, then as any accumulator.
struct Pool {
  Ref x;
  Ref scale;
  Ref bias;
  Output output;
  int64_t batch, channels;
  Window window;
};

struct Op {
  Kind kind;
  union {
    Gemm gemm;
    Gather gather;
    Depthwise depthwise;
    Pack pack;
    Move move;
    Elementwise elementwise;
    Pool pool;
  };
};

}  // namespace qcore
