// activation.h - the memory's activations and their slopes, from one pre-activation.
//
// All but gelu are z * sigmoid(z * (linear + cubic z^2)): silu with 1 and 0; gelu_tanh because
// (1 + tanh x) / 2 = sigmoid(2x). So two branches serve four names, and a kernel need not be compiled for each.
#pragma once

#include "../launchers.h"
#include "simt.h"

struct Activated {
  float value, slope;
};

DEVICE_FN Activated activate(int kind, float z) {
  if (kind == NM_IDENTITY) return {z, 1.f};
  float share, share_slope;  // value = z * share(z)
  if (kind == NM_GELU) {
    // erfc(|z| / sqrt 2) by 7.1.26 of Abramowitz and Stegun, off by 1.5e-7 at most: a fraction of what erff takes.
    const float x = .70710678118654752f * fabsf(z), t = reciprocal(1.f + .3275911f * x), e = exponential(-x * x);
    const float tail =
        .5f * e * t * (.254829592f + t * (-.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    share = z < 0.f ? tail : 1.f - tail;
    share_slope = .39894228040143268f * e;
  } else {
    const float linear = kind == NM_SILU ? 1.f : 1.5957691216057308f;  // 2 sqrt(2 / pi)
    const float cubic = kind == NM_SILU ? 0.f : 1.5957691216057308f * .044715f;
    share = reciprocal(1.f + exponential(-z * (linear + cubic * z * z)));
    share_slope = share * (1.f - share) * (linear + 3.f * cubic * z * z);
  }
  return {z * share, share + z * share_slope};
}
