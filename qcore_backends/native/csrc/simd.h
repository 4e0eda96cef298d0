// Vectors of 16 lanes in the compiler's own notation, so that one source serves every instruction
// set, and the one operation that needs instructions of its own: products of bytes.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace qcore {
namespace QCORE_ISA {

constexpr int kLanes = 16;

typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef float f32x16 __attribute__((vector_size(64)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

// Not those of the standard library: functions outside of this namespace are shared between the
// instruction sets by the linker, which may keep the version that not every processor can run.
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

template <typename Vector>
inline Vector load(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Vector>
inline void store(void* to, const Vector& value) {
  std::memcpy(to, &value, sizeof(value));
}

inline i32x16 every(int32_t value) { return value - i32x16{}; }
inline f32x16 every(float value) { return value - f32x16{}; }

inline i32x16 widen(u8x16 value) { return __builtin_convertvector(value, i32x16); }
inline u8x16 narrow(i32x16 value) { return __builtin_convertvector(value, u8x16); }
inline f32x16 to_float(i32x16 value) { return __builtin_convertvector(value, f32x16); }

// acc + the products of four unsigned bytes of x with four signed bytes of w, in each lane; exact.
#if defined(__AVX512VNNI__)
inline i32x16 dot4(i32x16 acc, i32x16 x, i32x16 w) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
}
#elif defined(__AVX2__)
// vpmaddubsw would saturate pairs in 16 bits, so bytes are widened: even ones, then odd ones.
inline __m256i dot4(__m256i acc, __m256i x, __m256i w) {
  const __m256i even = _mm256_and_si256(x, _mm256_set1_epi16(255));
  const __m256i odd = _mm256_srli_epi16(x, 8);
  const __m256i w_even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
  const __m256i w_odd = _mm256_srai_epi16(w, 8);
  const __m256i products =
      _mm256_add_epi32(_mm256_madd_epi16(even, w_even), _mm256_madd_epi16(odd, w_odd));
  return _mm256_add_epi32(acc, products);
}

struct Halves {
  __m256i low, high;
};

inline i32x16 dot4(i32x16 acc, i32x16 x, i32x16 w) {
  Halves a = load<Halves>(&acc);
  const Halves b = load<Halves>(&x), c = load<Halves>(&w);
  a.low = dot4(a.low, b.low, c.low);
  a.high = dot4(a.high, b.high, c.high);
  return load<i32x16>(&a);
}
#else
inline i32x16 dot4(i32x16 acc, i32x16 x, i32x16 w) {
  // Sums may pass the range on the way, as those of the instructions do.
  typedef uint32_t u32x16 __attribute__((vector_size(64)));
  u32x16 sum = (u32x16)acc;
  for (int byte = 0; byte < 4; ++byte) {
    const i32x16 a = (x >> (8 * byte)) & 255;
    const i32x16 b = (i32x16)((u32x16)w << (24 - 8 * byte)) >> 24;
    sum += (u32x16)(a * b);
  }
  return (i32x16)sum;
}
#endif

// Four rows of 16 bytes as 16 words of four, the first row lowest.
inline i32x16 interleave(u8x16 a, u8x16 b, u8x16 c, u8x16 d) {
  return widen(a) | (widen(b) << 8) | (widen(c) << 16) | (widen(d) << 24);
}

}  // namespace QCORE_ISA
}  // namespace qcore
