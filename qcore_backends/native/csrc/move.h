// Between memory formats: quantization of float32 of any strides, and copies.

#pragma once

#include "elementwise.h"

namespace qcore {
namespace QCORE_ISA {

// A task is one index of the three outer dimensions.
struct MoveTasks {
  static int64_t tasks(const Move& op) { return op.size[0] * op.size[1] * op.size[2]; }
  static int64_t scratch(const Move&) { return 0; }

  static int64_t offset(const Move& op, int64_t task, const int64_t (&stride)[kDims]) {
    const int64_t k = task % op.size[2], j = task / op.size[2] % op.size[1];
    const int64_t i = task / op.size[2] / op.size[1];
    return i * stride[0] + j * stride[1] + k * stride[2];
  }
};

struct QuantizeKernel : MoveTasks {
  // clamp(round(x / scale) + zero); NaN becomes the zero point.
  struct Rounding {
    explicit Rounding(const Move& op)
        : scale(op.scale), low(every(op.low)), high(every(op.high)), zero(op.zero) {}

    u8x16 operator()(f32x16 x) const {
      f32x16 t = x / scale;
      t = t == t ? t : f32x16{};
      return narrow(round_add(clamp(t, low, high), zero));
    }

    float scale;
    f32x16 low, high;
    int32_t zero;
  };

  static void run(const Move& op, int64_t task, const Context& context) {
    const float* x = at<const float>(context, op.x) + offset(op, task, op.x_stride);
    uint8_t* y = at<uint8_t>(context, op.y) + offset(op, task, op.y_stride);
    const Rounding round(op);
    const bool along_rows = op.x_stride[4] != 1 && op.x_stride[3] == 1;
    // The dimension that is dense in x goes by vectors.
    const int dense = along_rows ? 3 : 4, other = along_rows ? 4 : 3;
    for (int64_t i = 0; i < op.size[other]; ++i) {
      line(round, x + i * op.x_stride[other], op.x_stride[dense], y + i * op.y_stride[other],
           op.y_stride[dense], op.size[dense]);
    }
  }

 private:
  static void line(const Rounding& round, const float* x, int64_t x_stride, uint8_t* y,
                   int64_t y_stride, int64_t size) {
    for (int64_t i = 0; i < size; i += kLanes) {
      const int count = static_cast<int>(min(kLanes, size - i));
      f32x16 values{};
      if (x_stride == 1 && count == kLanes) {
        values = load<f32x16>(x + i);
      } else {
        for (int j = 0; j < count; ++j) values[j] = x[(i + j) * x_stride];
      }
      const u8x16 q = round(values);
      if (y_stride == 1) {
        store_some(y + i, q, count);
      } else {
        uint8_t bytes[kLanes];
        store(bytes, q);
        for (int j = 0; j < count; ++j) y[(i + j) * y_stride] = bytes[j];
      }
    }
  }
};

struct CopyKernel : MoveTasks {
  static void run(const Move& op, int64_t task, const Context& context) {
    const int64_t from = offset(op, task, op.x_stride), to = offset(op, task, op.y_stride);
    if (op.element_bytes == 4) {
      copy(op, at<const uint32_t>(context, op.x) + from, at<uint32_t>(context, op.y) + to, 0u);
    } else {
      copy(op, at<const uint8_t>(context, op.x) + from, at<uint8_t>(context, op.y) + to,
           static_cast<uint8_t>(op.flip));
    }
  }

 private:
  template <typename T>
  static void copy(const Move& op, const T* x, T* y, T flip) {
    for (int64_t i = 0; i < op.size[3]; ++i) {
      const T* from = x + i * op.x_stride[3];
      T* to = y + i * op.y_stride[3];
      if (op.x_stride[4] == 1 && op.y_stride[4] == 1) {
        for (int64_t j = 0; j < op.size[4]; ++j) to[j] = from[j] ^ flip;
      } else {
        for (int64_t j = 0; j < op.size[4]; ++j) {
          to[j * op.y_stride[4]] = from[j * op.x_stride[4]] ^ flip;
        }
      }
    }
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
