// Matrix products of bytes, by vectors: blocks of rows times panels of 16 columns in registers.

#pragma once

#include "epilogue.h"

namespace qcore {
namespace QCORE_ISA {

#if defined(__AVX512VNNI__)
// Of 32 registers, 24 hold sums; fewer panels leave room for more rows.
constexpr int kMaxPanels = 4;
constexpr int block_rows(int panels) { return panels == 4 ? 6 : 8; }
#else
constexpr int kMaxPanels = 1;
constexpr int block_rows(int) { return 4; }
#endif

// Where the operands of one task lie.
struct GemmTask {
  const uint8_t* x;          // the first row
  int64_t x_row;             // bytes between rows
  const int8_t* weight;      // the first panel
  int64_t panel_bytes;
  const int32_t* bias;       // of column 0, as everything below
  const float* scale;
  const int32_t* row_terms;  // one a row, or null
  int64_t row;               // of the output, of the first row
  int64_t rows;
  int64_t panel, panels, columns;

  int32_t row_term(int64_t r) const { return row_terms ? row_terms[r] : 0; }
  int valid(int64_t n) const {
    return static_cast<int>(columns - n < kLanes ? columns - n : kLanes);
  }
};

// The outputs of `rows` rows of sums, `sums_row` apart, from row r of the task and column n on.
// What is the same for all rows stays in registers, so the epilogue is a copy: stores could change
// the original, for all that the compiler knows.
template <int kPanels, Epilogue::Mode kMode>
inline void finish_whole_rows(const GemmTask& task, const Epilogue epilogue, const int32_t* sums,
                              int64_t sums_row, int64_t r, int64_t rows, int64_t n) {
  i32x16 bias[kPanels];
  f32x16 scale[kPanels];
  for (int j = 0; j < kPanels; ++j) {
    bias[j] = load<i32x16>(task.bias + n + j * kLanes);
    scale[j] = load<f32x16>(task.scale + n + j * kLanes);
  }
  const int32_t* terms = task.row_terms;
  const int64_t row = task.row + r;
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t term = terms ? terms[r + i] : 0;
    for (int j = 0; j < kPanels; ++j) {
      const i32x16 acc = load<i32x16>(sums + i * sums_row + j * kLanes) + bias[j] + term;
      epilogue.template finish_lanes<kMode>(acc, scale[j], row + i, n + j * kLanes);
    }
  }
}

template <int kPanels>
inline void finish_rows(const GemmTask& task, const Epilogue& epilogue, const int32_t* sums,
                        int64_t sums_row, int64_t r, int64_t rows, int64_t n) {
  using Mode = Epilogue::Mode;
  if (n + kPanels * kLanes <= task.columns) {
    switch (epilogue.mode()) {
      case Mode::bytes:
        return finish_whole_rows<kPanels, Mode::bytes>(task, epilogue, sums, sums_row, r, rows, n);
      case Mode::bytes_and_other:
        return finish_whole_rows<kPanels, Mode::bytes_and_other>(task, epilogue, sums, sums_row, r,
                                                                 rows, n);
      case Mode::floats:
        return finish_whole_rows<kPanels, Mode::floats>(task, epilogue, sums, sums_row, r, rows, n);
      case Mode::any:
        return finish_whole_rows<kPanels, Mode::any>(task, epilogue, sums, sums_row, r, rows, n);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int j = 0; j < kPanels; ++j) {
      const int64_t column = n + j * kLanes;
      const i32x16 acc = load<i32x16>(sums + i * sums_row + j * kLanes) +
                         load<i32x16>(task.bias + column) + task.row_term(r + i);
      epilogue.finish(acc, load<f32x16>(task.scale + column), task.row + r + i, column,
                      task.valid(column));
    }
  }
}

// sums[i][j] = the products of row i with panel j. A function of its own, so that all sums stay in
// registers.
template <int kRows, int kPanels>
__attribute__((noinline)) void multiply_block(const uint8_t* x, int64_t x_row, const int8_t* w,
                                              int64_t panel_bytes, int64_t words, i32x16* sums) {
  Words acc[kRows][kPanels];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanels; ++j) acc[i][j] = every_word(0);
  }
  for (int64_t k = 0; k < words; ++k) {
    Words b[kPanels];
#pragma GCC unroll 8
    for (int j = 0; j < kPanels; ++j) b[j] = load_words(w + j * panel_bytes + k * 64);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Words a = every_word(load<int32_t>(x + i * x_row + k * 4));
#pragma GCC unroll 8
      for (int j = 0; j < kPanels; ++j) acc[i][j] = dot4(acc[i][j], a, b[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanels; ++j) store(sums + i * kPanels + j, acc[i][j]);
  }
}

template <int kRows, int kPanels>
inline void block(const GemmTask& task, const Epilogue& epilogue, int64_t words, int64_t r,
                  int64_t p) {
  i32x16 sums[kRows * kPanels];
  multiply_block<kRows, kPanels>(task.x + r * task.x_row, task.x_row,
                                 task.weight + p * task.panel_bytes, task.panel_bytes, words, sums);
  finish_rows<kPanels>(task, epilogue, reinterpret_cast<const int32_t*>(sums), kPanels * kLanes, r,
                       kRows, (task.panel + p) * kLanes);
}

// All rows of some panels; the last rows in smaller blocks.
template <int kPanels>
inline void multiply_panels(const GemmTask& task, const Epilogue& epilogue, int64_t words,
                            int64_t p) {
  constexpr int kRows = block_rows(kPanels);
  int64_t r = 0;
  for (; r + kRows <= task.rows; r += kRows) {
    block<kRows, kPanels>(task, epilogue, words, r, p);
  }
  for (; r + 2 <= task.rows; r += 2) block<2, kPanels>(task, epilogue, words, r, p);
  for (; r < task.rows; ++r) block<1, kPanels>(task, epilogue, words, r, p);
}

inline void multiply(const GemmTask& task, const Epilogue& epilogue, int64_t depth) {
  const int64_t words = (depth + 3) / 4;
  int64_t p = 0;
  for (; p + kMaxPanels <= task.panels; p += kMaxPanels) {
    multiply_panels<kMaxPanels>(task, epilogue, words, p);
  }
  if constexpr (kMaxPanels > 1) {
    const int64_t rest = task.panels - p;
    if (rest == 3) multiply_panels<3>(task, epilogue, words, p);
    if (rest == 2) multiply_panels<2>(task, epilogue, words, p);
    if (rest == 1) multiply_panels<1>(task, epilogue, words, p);
  }
}

// factor * the sum of each row.
inline void sum_rows(const uint8_t* x, int64_t x_row, int64_t rows, int64_t depth, int32_t factor,
                     int32_t* sums) {
  const i32x16 ones = every(0x01010101);
  for (int64_t r = 0; r < rows; ++r, x += x_row) {
    i32x16 lanes{};
    int64_t k = 0;
    for (; k + 64 <= depth; k += 64) lanes = dot4(lanes, load<i32x16>(x + k), ones);
    int32_t sum = 0;
    for (; k < depth; ++k) sum += x[k];
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    sums[r] = factor * sum;
  }
}

}  // namespace QCORE_ISA
}  // namespace qcore
