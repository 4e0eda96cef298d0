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

// The first bytes of a vector. Not inline: the vector would lie in memory on the common path, too.
template <typename Vector>
__attribute__((noinline)) void store_part(void* to, Vector value, int64_t bytes) {
  std::memcpy(to, &value, bytes);
}

inline i32x16 every(int32_t value) { return value - i32x16{}; }
inline f32x16 every(float value) { return value - f32x16{}; }

inline f32x16 to_float(i32x16 value) { return __builtin_convertvector(value, f32x16); }

// What compilers make badly of plain vectors, by instruction set:
//   widen, narrow   between 16 bytes and 16 words
//   clamp           into [low, high]; no NaN
//   dot4            acc + the products of four unsigned bytes of x with four signed bytes of w, in
//                   each lane; exact
//   Words           16 words of a long sum, in whatever shape registers have
//   every_word      the same word 16 times
//   load_words      64 bytes of memory
#if defined(__AVX512VNNI__)

using Words = i32x16;

inline Words every_word(int32_t value) { return every(value); }
inline Words load_words(const void* from) { return load<Words>(from); }
inline i32x16 widen(u8x16 value) { return (i32x16)_mm512_cvtepu8_epi32((__m128i)value); }
inline u8x16 narrow(i32x16 value) { return (u8x16)_mm512_cvtepi32_epi8((__m512i)value); }
inline f32x16 clamp(f32x16 t, f32x16 low, f32x16 high) {
  return (f32x16)_mm512_min_ps(_mm512_max_ps((__m512)t, (__m512)low), (__m512)high);
}
inline i32x16 dot4(i32x16 acc, i32x16 x, i32x16 w) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
}

#elif defined(__AVX2__)

struct Words {
  __m256i low, high;
};

inline Words every_word(int32_t value) {
  const __m256i word = _mm256_set1_epi32(value);
  return {word, word};
}
inline Words load_words(const void* from) {
  const __m256i* halves = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}

inline i32x16 widen(u8x16 value) {
  const __m128i bytes = (__m128i)value;
  const Words words = {_mm256_cvtepu8_epi32(bytes),
                        _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  return load<i32x16>(&words);
}
inline u8x16 narrow(i32x16 value) {
  // The lowest bytes of each half of a register, then the four words that hold them.
  const __m256i lowest = _mm256_set1_epi32(0x0C080400);
  const Words words = load<Words>(&value);
  const __m256i low = _mm256_shuffle_epi8(words.low, lowest);
  const __m256i high = _mm256_shuffle_epi8(words.high, lowest);
  return (u8x16)_mm_setr_epi32(_mm256_extract_epi32(low, 0), _mm256_extract_epi32(low, 4),
                               _mm256_extract_epi32(high, 0), _mm256_extract_epi32(high, 4));
}
inline f32x16 clamp(f32x16 t, f32x16 low, f32x16 high) {
  struct {
    __m256 low, high;
  } a, b, c;
  std::memcpy(&a, &t, sizeof(a));
  std::memcpy(&b, &low, sizeof(b));
  std::memcpy(&c, &high, sizeof(c));
  a.low = _mm256_min_ps(_mm256_max_ps(a.low, b.low), c.low);
  a.high = _mm256_min_ps(_mm256_max_ps(a.high, b.high), c.high);
  return load<f32x16>(&a);
}
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
inline Words dot4(Words acc, Words x, Words w) {
  return {dot4(acc.low, x.low, w.low), dot4(acc.high, x.high, w.high)};
}
inline i32x16 dot4(i32x16 acc, i32x16 x, i32x16 w) {
  const Words sum = dot4(load<Words>(&acc), load<Words>(&x), load<Words>(&w));
  return load<i32x16>(&sum);
}

#else

using Words = i32x16;

inline Words every_word(int32_t value) { return every(value); }
inline Words load_words(const void* from) { return load<Words>(from); }
inline i32x16 widen(u8x16 value) { return __builtin_convertvector(value, i32x16); }
inline u8x16 narrow(i32x16 value) { return __builtin_convertvector(value, u8x16); }
inline f32x16 clamp(f32x16 t, f32x16 low, f32x16 high) {
  t = t < low ? low : t;
  return t > high ? high : t;
}
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
