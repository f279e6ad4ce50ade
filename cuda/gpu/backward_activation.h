// backward_activation.h - the second derivative of the memory's activations, which the gradient of an inner gradient
// needs. Value and slope: activation.h, with the same two branches.
#pragma once

#include "activation.h"

namespace backward {

DEVICE_FN float curve(int kind, float z) {
  if (kind == NM_IDENTITY) return 0.f;
  if (kind == NM_GELU) return .39894228040143268f * exponential(-.5f * z * z) * (2.f - z * z);
  const float linear = kind == NM_SILU ? 1.f : 1.5957691216057308f;
  const float cubic = kind == NM_SILU ? 0.f : 1.5957691216057308f * .044715f;
  const float share = reciprocal(1.f + exponential(-z * (linear + cubic * z * z)));
  const float inner = linear + 3.f * cubic * z * z;  // the slope of what the sigmoid is taken of
  return share * (1.f - share) * (2.f * inner + z * (6.f * cubic * z + (1.f - 2.f * share) * inner * inner));
}

}  // namespace backward
