// Dense tensors, value by value.

#pragma once

#include "epilogue.h"

namespace qcore {
namespace QCORE_ISA {

// Runs step(i, count) for every 16 values of a task; the last may be fewer.
struct Slices {
  static constexpr int64_t kTask = 1 << 14;

  static int64_t tasks(const Elementwise& op) { return (op.count + kTask - 1) / kTask; }
  static int64_t scratch(const Elementwise&) { return 0; }

  template <typename Step>
  static void each(const Elementwise& op, int64_t task, Step step) {
    const int64_t end = min(op.count, (task + 1) * kTask);
    int64_t i = task * kTask;
    for (; i + kLanes <= end; i += kLanes) step(i, kLanes);
    if (i < end) step(i, static_cast<int>(end - i));
  }
};

inline u8x16 load_some(const uint8_t* from, int count) {
  if (count == kLanes) return load<u8x16>(from);
  u8x16 value{};
  std::memcpy(&value, from, count);
  return value;
}

template <typename Vector, typename Element>
inline void store_some(Element* to, const Vector& value, int count) {
  if (count == kLanes) {
    store(to, value);
  } else {
    store_part(to, value, count * sizeof(Element));
  }
}

// The output of one computing operation: bytes, or floats as they are.
struct ElementwiseOutput {
  ElementwiseOutput(const Elementwise& op, const Context& context)
      : bytes(op.is_float ? nullptr : at<uint8_t>(context, op.y)),
        floats(op.is_float ? at<float>(context, op.y) : nullptr),
        low(every(op.low)),
        high(every(op.high)),
        zero(op.zero) {}

  void write(f32x16 t, int64_t i, int count) const {
    if (floats) {
      store_some(floats + i, t, count);
    } else {
      store_some(bytes + i, narrow(round_add(clamp(t, low, high), zero)), count);
    }
  }

  uint8_t* bytes;
  float* floats;
  f32x16 low, high;
  int32_t zero;
};

// add, mul, requantize and dequantize differ in one line: from integers less their zero points to
// t.
template <typename Formula>
struct ElementwiseKernel : Slices {
  static void run(const Elementwise& op, int64_t task, const Context& context) {
    const uint8_t* a = at<const uint8_t>(context, op.a);
    const uint8_t* b = at<const uint8_t>(context, op.b);
    const int32_t a_zero = op.a_zero, b_zero = op.b_zero;
    const float a_scale = op.a_scale, b_scale = op.b_scale;
    const ElementwiseOutput output(op, context);
    each(op, task, [&](int64_t i, int count) {
      const i32x16 left = widen(load_some(a + i, count)) - a_zero;
      i32x16 right{};
      if constexpr (Formula::kOperands == 2) right = widen(load_some(b + i, count)) - b_zero;
      output.write(Formula::value(left, right, a_scale, b_scale), i, count);
    });
  }
};

struct AddFormula {
  static constexpr int kOperands = 2;
  static f32x16 value(i32x16 a, i32x16 b, float a_scale, float b_scale) {
    return to_float(a) * a_scale + to_float(b) * b_scale;
  }
};

struct MulFormula {
  static constexpr int kOperands = 2;
  static f32x16 value(i32x16 a, i32x16 b, float a_scale, float) {
    return to_float(a * b) * a_scale;
  }
};

struct ScaleFormula {
  static constexpr int kOperands = 1;
  static f32x16 value(i32x16 a, i32x16, float a_scale, float) { return to_float(a) * a_scale; }
};

using AddKernel = ElementwiseKernel<AddFormula>;
using MulKernel = ElementwiseKernel<MulFormula>;
using RequantizeKernel = ElementwiseKernel<ScaleFormula>;
using DequantizeKernel = ElementwiseKernel<ScaleFormula>;

struct TableKernel : Slices {
  static void run(const Elementwise& op, int64_t task, const Context& context) {
    const uint8_t* x = at<const uint8_t>(context, op.a);
    const uint8_t* table = at<const uint8_t>(context, op.table);
    uint8_t* y = at<uint8_t>(context, op.y);
    const int64_t end = min(op.count, (task + 1) * kTask);
    int64_t i = task * kTask;
#if defined(__AVX512VBMI__)
    // Two permutations choose among 128 bytes each; the highest bit chooses between the two.
    __m512i quarters[4];
    for (int q = 0; q < 4; ++q) quarters[q] = _mm512_loadu_si512(table + 64 * q);
    for (; i + 64 <= end; i += 64) {
      const __m512i index = _mm512_loadu_si512(x + i);
      const __m512i low = _mm512_permutex2var_epi8(quarters[0], index, quarters[1]);
      const __m512i high = _mm512_permutex2var_epi8(quarters[2], index, quarters[3]);
      _mm512_storeu_si512(y + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
    }
#endif
    for (; i < end; ++i) y[i] = table[x[i]];
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
