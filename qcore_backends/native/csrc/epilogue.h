// The last step of every computing operation: from int32 accumulators to the output.

#pragma once

#include "kernels.h"
#include "simd.h"

namespace qcore {

namespace QCORE_ISA {

template <typename T>
inline T* at(const Context& context, const Ref& ref) {
  return ref.slot < 0 ? nullptr : reinterpret_cast<T*>(context.slots[ref.slot] + ref.offset);
}

// rint(t) + zero for |t| < 2**22: adding 1.5 * 2**23 leaves the integer, rounded half to even, in
// the low bits of the sum.
inline i32x16 round_add(f32x16 t, int32_t zero) {
  constexpr float kMagic = 12582912.0f;
  constexpr int32_t kMagicBits = 0x4B400000;
  return (i32x16)(t + kMagic) + (zero - kMagicBits);
}

// An Output with its memory; a copy lives in registers while a kernel runs.
struct Epilogue {
  Epilogue(const Output& output, const Context& context)
      : other(at<const uint8_t>(context, output.other)),
        bytes(output.is_float ? nullptr : at<uint8_t>(context, output.y)),
        floats(output.is_float ? at<float>(context, output.y) : nullptr),
        y_row(output.y_row),
        other_row(output.other_row),
        other_scale(output.other_scale),
        other_zero(output.other_zero),
        low(every(output.low)),
        high(every(output.high)),
        zero(output.zero) {}

  // The same output, `elements` further on.
  void advance(int64_t elements) {
    if (bytes) bytes += elements;
    if (floats) floats += elements;
    if (other) other += elements;
  }

  // What the common kernels are compiled for; everything else goes by finish().
  enum class Mode { bytes, bytes_and_other, floats, any };

  Mode mode() const {
    if (floats) return other ? Mode::any : Mode::floats;
    return other ? Mode::bytes_and_other : Mode::bytes;
  }

  // `count` <= 16 outputs of one row from column n on.
  void finish(i32x16 acc, f32x16 scale, int64_t row, int64_t n, int count) const {
    f32x16 t = to_float(acc) * scale;
    if (other) t = t + residual(row, n);
    if (floats) {
      float* y = floats + row * y_row + n;
      if (count == kLanes) {
        store(y, t);
      } else {
        store_part(y, t, count * sizeof(float));
      }
      return;
    }
    uint8_t* y = bytes + row * y_row + n;
    if (count == kLanes) {
      store(y, rounded(t));
    } else {
      store_part(y, rounded(t), count);
    }
  }

  // 16 outputs, when the mode is known to be kMode.
  template <Mode kMode>
  void finish_lanes(i32x16 acc, f32x16 scale, int64_t row, int64_t n) const {
    if constexpr (kMode == Mode::any) {
      finish(acc, scale, row, n, kLanes);
    } else if constexpr (kMode == Mode::floats) {
      store(floats + row * y_row + n, to_float(acc) * scale);
    } else {
      f32x16 t = to_float(acc) * scale;
      if constexpr (kMode == Mode::bytes_and_other) t = t + residual(row, n);
      store(bytes + row * y_row + n, rounded(t));
    }
  }

  f32x16 residual(int64_t row, int64_t n) const {
    const i32x16 d = widen(load<u8x16>(other + row * other_row + n)) - other_zero;
    return to_float(d) * other_scale;
  }

  u8x16 rounded(f32x16 t) const { return narrow(round_add(clamp(t, low, high), zero)); }

  const uint8_t* other;
  uint8_t* bytes;
  float* floats;
  int64_t y_row, other_row;
  float other_scale;
  int32_t other_zero;
  f32x16 low, high;
  int32_t zero;
};

}  // namespace QCORE_ISA
}  // namespace qcore
