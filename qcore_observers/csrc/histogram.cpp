// The two passes over many values that a histogram observer makes. excerpt.py and dyadic.py say what
// is found, and have the same in operations of torch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include <qcore/openmp.h>

namespace {

// The smallest vectors that there are on all processors: these loops wait for memory.
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;

// Columns of a piece, whose extremes stay in the fastest cache: a multiple of the lanes.
constexpr int64_t kColumns = 1024;

// Values of one column that are read before its extremes are written. Each is the next one of a
// line of values that lie one after the other, and so many lines a processor can foresee.
constexpr int64_t kAtOnce = 8;

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Takes kRows values of each column into its extremes. Whether one of them was NaN, which is lost.
template <int64_t kRows>
bool take(const float* x, int64_t stride, int64_t columns, float* low, float* high) {
  Mask bad{};
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    Floats least = load(low + i), most = load(high + i);
    for (int64_t row = 0; row < kRows; ++row) {
      const Floats value = load(x + row * stride + i);
      least = value < least ? value : least;
      most = value > most ? value : most;
      bad |= value != value;
    }
    store(low + i, least);
    store(high + i, most);
  }
  bool found = bad[0] | bad[1] | bad[2] | bad[3];
  for (; i < columns; ++i) {
    for (int64_t row = 0; row < kRows; ++row) {
      const float value = x[row * stride + i];
      low[i] = std::min(low[i], value);
      high[i] = std::max(high[i], value);
      found |= value != value;
    }
  }
  return found;
}

// Extremes of each of some columns, over `size` values that are `stride` apart.
void extremes(const float* x, int64_t size, int64_t stride, int64_t columns, float* low,
              float* high) {
  std::fill_n(low, columns, std::numeric_limits<float>::infinity());
  std::fill_n(high, columns, -std::numeric_limits<float>::infinity());
  bool bad = false;
  int64_t row = 0;
  for (; row + kAtOnce <= size; row += kAtOnce) {
    bad |= take<kAtOnce>(x + row * stride, stride, columns, low, high);
  }
  for (; row < size; ++row) bad |= take<1>(x + row * stride, stride, columns, low, high);
  if (!bad) return;
  for (row = 0; row < size; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      const float value = x[row * stride + i];
      if (value != value) low[i] = high[i] = value;
    }
  }
}

// How the values of one row are counted.
struct Bins {
  double factor;  // one by the width of a bin
  int64_t first;
  int64_t count;
};

void count(const float* x, const bool* where, int64_t n, const Bins& bins, int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) {
    if (where && !where[i]) continue;
    // Exact: a factor is a power of two. Rounded down, as floor() does, which is slow.
    const double place = x[i] * bins.factor;
    int64_t bin = static_cast<int64_t>(place);
    bin -= place < static_cast<double>(bin);
    bin -= bins.first;
    if (bin >= 0 && bin < bins.count) ++counts[bin];
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// low, high [rows, columns]: extremes over dimension 1 of x [rows, size, columns]; NaN where one is.
void qcore_extremes(const float* x, int64_t rows, int64_t size, int64_t columns, int threads,
                    float* low, float* high) {
  const int64_t pieces = (columns + kColumns - 1) / kColumns;
  qcore::for_each(rows * pieces, threads, [=](int64_t i) {
    const int64_t row = i / pieces, begin = i % pieces * kColumns;
    const int64_t at = row * columns + begin;
    extremes(x + row * size * columns + begin, size, columns, std::min(kColumns, columns - begin),
             low + at, high + at);
  });
}

// Adds to counts [rows, bins] how many values of x [rows, n] lie in each bin: bin j of a row has
// those from (first + j) * 2^exponent on. Where `where` [rows, n] is not null, those it is true for.
void qcore_count(const float* x, const bool* where, int64_t rows, int64_t n,
                 const int64_t* exponent, const int64_t* first, int64_t bins, int threads,
                 int64_t* counts) {
  qcore::for_each(rows, threads, [=](int64_t row) {
    const Bins of_row{std::ldexp(1.0, static_cast<int>(-exponent[row])), first[row], bins};
    count(x + row * n, where ? where + row * n : nullptr, n, of_row, counts + row * bins);
  });
}

}  // extern "C"
#pragma GCC visibility pop
