// Values and gradients of fake quantization, each in one pass over the tensor. The formulas are
// those of lattice.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <qcore/openmp.h>

namespace {

// A dense tensor, as rows of values that share a scale: row r begins at value r * length, and its
// scale is that of channel r % channels.
struct Rows {
  int64_t count;
  int64_t channels;
  int64_t length;
};

// Scales and zero points by channel, and the range of the integers.
struct Lattice {
  const float* scale;
  const float* zero_point;
  float quant_min;
  float quant_max;
};

// The smallest vectors that there are on all processors: these loops wait for memory, not for
// arithmetic.
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;

inline Floats every(float value) { return value - Floats{}; }

// The first values of a vector, all or fewer; the others are 0.
inline Floats load(const float* from, int64_t count) {
  Floats value{};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline void store(float* to, Floats value, int64_t count) {
  std::memcpy(to, &value, count * sizeof(float));
}

// Calls step(i, lanes) for i = 0, kLanes, ...; `lanes` is a constant but in the last call.
template <class Step>
inline void for_each_vector(int64_t count, const Step& step) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step(i, kLanes);
  if (i < count) step(i, count - i);
}

// Half to even, for numbers below 2^22: with so large an integer added no digit is left behind
// the point.
inline Floats round(Floats value) {
  const Floats integers = every(12582912.0f);
  return (value + integers) - integers;
}

// In [low, high]; NaN stays NaN.
inline Floats clamp(Floats value, Floats low, Floats high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// One channel of a lattice; its ends are seen from the zero point.
struct Steps {
  Steps(const Lattice& lattice, int64_t channel)
      : scale(every(lattice.scale[channel])),
        low(every(lattice.quant_min - lattice.zero_point[channel])),
        high(every(lattice.quant_max - lattice.zero_point[channel])) {}

  const Floats scale, low, high;
};

void values(const float* x, float* y, int64_t count, const Steps& steps) {
  for_each_vector(count, [=](int64_t i, int64_t lanes) {
    // The ends are integers, so it makes no difference what comes first, the clamp or the rounding.
    const Floats q = round(clamp(load(x + i, lanes) / steps.scale, steps.low, steps.high));
    store(y + i, q * steps.scale, lanes);
  });
}

// Over the values of a row: gradient times slope by the scale, and the gradient of those outside.
struct Sums {
  double by_scale;
  double outside;
};

template <bool kSums>
Sums gradients(const float* grad, const float* x, float* by_x, int64_t count, const Steps& steps,
               bool rounded, bool through) {
  // Rounded values are integers, so half a step beyond the last one there is nothing.
  const Floats below = rounded ? steps.low - 0.5f : steps.low;
  const Floats above = rounded ? steps.high + 0.5f : steps.high;
  Floats by_scale{}, outside{};
  for_each_vector(count, [&, steps](int64_t i, int64_t lanes) {
    const Floats g = load(grad + i, lanes);
    const Floats u = load(x + i, lanes) / steps.scale;
    // One step beyond the ends is as far outside as any other place, and can be rounded.
    const Floats r = round(clamp(u, steps.low - 1.0f, steps.high + 1.0f));
    const Floats place = rounded ? r : u;
    const Mask inside = (place > below) & (place < above);
    const Floats g_inside = (Floats)((Mask)g & inside);
    store(by_x + i, g_inside, lanes);
    if (kSums) {
      const Floats q = clamp(r, steps.low, steps.high);
      by_scale += g * (q - (Floats)((Mask)(through ? u : q) & inside));
      outside += g - g_inside;
    }
  });
  Sums sums{};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sums.by_scale += by_scale[lane];
    sums.outside += outside[lane];
  }
  return sums;
}

double gradient_scale(const Lattice& lattice, int64_t channel, int64_t count) {
  const float above = lattice.quant_max - lattice.zero_point[channel];
  const float below = lattice.zero_point[channel] - lattice.quant_min - 1.0f;
  return 1.0 / std::sqrt(static_cast<double>(std::max({above, below, 1.0f})) * count);
}

// The piece of a row that one thread works on, and whose sums are float32. Pieces do not depend on
// the number of threads, so the sums do not either.
constexpr int64_t kPiece = 4096;

int64_t pieces_of_row(const Rows& rows) { return (rows.length + kPiece - 1) / kPiece; }

// Calls work(piece, channel, begin, count) for all pieces of all rows, on up to `threads` threads.
template <class Work>
void for_each_piece(const Rows& rows, int threads, const Work& work) {
  const int64_t a_row = pieces_of_row(rows), pieces = rows.count * a_row;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / a_row, offset = piece % a_row * kPiece;
      work(piece, row % rows.channels, row * rows.length + offset,
           std::min(kPiece, rows.length - offset));
    }
  };
  // As few values for a thread as torch gives one.
  constexpr int64_t kFewest = 32768;
  const int64_t useful = rows.count * rows.length / kFewest;
  const int64_t shares = std::max<int64_t>(std::min<int64_t>(threads, useful), 1);
  qcore::for_each(shares, threads, [&](int64_t share) {
    range(share * pieces / shares, (share + 1) * pieces / shares);
  });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// y: x on the lattice.
void qcore_lattice_values(const Rows* rows, const Lattice* lattice, int threads, const float* x,
                          float* y) {
  for_each_piece(*rows, threads,
                 [=](int64_t, int64_t channel, int64_t begin, int64_t count) {
                   values(x + begin, y + begin, count, Steps(*lattice, channel));
                 });
}

// by_x; and, where they are not null, by_scale and by_zero_point, one for each channel, which are
// multiplied by gradient_scale unless count is 0.
// Returns 0, or 1 if there is no memory.
int qcore_lattice_gradients(const Rows* rows, const Lattice* lattice, int threads,
                            const float* grad, const float* x, int rounded, int through,
                            int64_t count, float* by_x, float* by_scale, float* by_zero_point) {
  const bool wanted = by_scale || by_zero_point;
  const int64_t a_row = pieces_of_row(*rows);
  const std::unique_ptr<Sums[]> sums(new (std::nothrow) Sums[wanted ? rows->count * a_row : 0]);
  const std::unique_ptr<Sums[]> totals(new (std::nothrow) Sums[wanted ? rows->channels : 0]());
  if (!sums || !totals) return 1;
  for_each_piece(*rows, threads,
                 [&](int64_t piece, int64_t channel, int64_t begin, int64_t count) {
                   const auto kernel = wanted ? gradients<true> : gradients<false>;
                   const Sums found = kernel(grad + begin, x + begin, by_x + begin, count,
                                             Steps(*lattice, channel), rounded, through);
                   if (wanted) sums[piece] = found;
                 });
  if (!wanted) return 0;
  for (int64_t piece = 0; piece < rows->count * a_row; ++piece) {
    Sums& total = totals[piece / a_row % rows->channels];
    total.by_scale += sums[piece].by_scale;
    total.outside += sums[piece].outside;
  }
  for (int64_t c = 0; c < rows->channels; ++c) {
    const double factor = count ? gradient_scale(*lattice, c, count) : 1.0;
    if (by_scale) by_scale[c] = static_cast<float>(totals[c].by_scale * factor);
    if (by_zero_point) {
      by_zero_point[c] = static_cast<float>(-totals[c].outside * lattice->scale[c] * factor);
    }
  }
  return 0;
}

}  // extern "C"
#pragma GCC visibility pop
