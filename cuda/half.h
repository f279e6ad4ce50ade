// half.h - float16 as bits, to and from float: exact, nearest even, denormals and infinities kept, a NaN stays one.
//
// Not _Float16, which g++ has from version 12 on for x86 and from 13 on for aarch64. No float on the way is denormal,
// so the results are the same while a processor flushes those to zero. Static: one copy per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

namespace nm {

static inline float float_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float widen_half(uint16_t half) {
  const uint32_t magnitude = uint32_t(half & 0x7fff) << 13, exponent = half & 0x7c00;
  const uint32_t shift = exponent == 0x7c00 ? 224u << 23 : 112u << 23;  // infinity and NaN: the largest exponent
  const float denormal = float_from_bits(magnitude + (113u << 23)) - float_from_bits(113u << 23);
  const uint32_t bits = exponent ? magnitude + shift : bits_of_float(denormal);
  return float_from_bits(bits | uint32_t(half & 0x8000) << 16);
}

static inline uint16_t narrow_half(float x) {
  const uint32_t bits = bits_of_float(x), magnitude = bits & 0x7fffffff;
  const uint32_t rounded = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;  // may carry to infinity
  const uint32_t denormal = bits_of_float(float_from_bits(magnitude) + .5f) - bits_of_float(.5f);  // units of 2^-24
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const uint32_t half = magnitude >= 143u << 23 ? special : magnitude < 113u << 23 ? denormal : rounded;
  return uint16_t(half | (bits >> 16 & 0x8000));
}

}  // namespace nm
