// activation.h - the activations of the memory's MLP with their first two derivatives, one exponential for all three.
// Arguments at which they saturate give the exact limits: no infinity is ever multiplied by zero.
#pragma once

#include "../launchers.h"
#include "vector.h"

namespace nm {
namespace NM_ISA {

float number_in(Vec<float>);  // only declared, for Number
double number_in(Vec<double>);
template <class V>
using Number = decltype(number_in(V{}));

struct Identity {
  template <class V>
  static NM_INLINE V value(V z) {
    return z;
  }
  template <class V>
  static NM_INLINE void value_slope(V z, V& value, V& slope) {
    value = z;
    slope = V{} + 1;
  }
  template <class V>
  static NM_INLINE void value_slope_curve(V z, V& value, V& slope, V& curve) {
    value_slope(z, value, slope);
    curve = V{};
  }
};

// z sigmoid(w(z)) for an odd, rising w. Form gives w, w' and w''; beyond its limit the sigmoid is 0 or 1 to the last
// bit.
template <class Form>
struct Gated {
  template <class V>
  static NM_INLINE V value(V z) {
    return z * Gate<V>(z).open;
  }

  template <class V>
  static NM_INLINE void value_slope(V z, V& value, V& slope) {
    const Gate<V> gate(z);
    value = z * gate.open;
    slope = gate.open + gate.hill * gate.x * Form::slope(gate.x);
  }

  template <class V>
  static NM_INLINE void value_slope_curve(V z, V& value, V& slope, V& curve) {
    const Gate<V> gate(z);
    const V x = gate.x, w1 = Form::slope(x), hill = gate.hill;
    value = z * gate.open;
    slope = gate.open + hill * x * w1;
    curve = hill * (2 * w1 + x * (Form::curve(x) + w1 * w1 * (gate.closed - gate.open)));
  }

 private:
  // x = z within the limit, open = 1 / (1 + e^-w(x)) and closed = 1 - open, each to full relative precision. The slope
  // of open is hill w'.
  template <class V>
  struct Gate {
    explicit NM_INLINE Gate(V z) {
      const Number<V> limit = Form::template limit<Number<V>>;
      x = clamp(z, -limit, limit);
      const V small = exp_within(Form::argument(below_zero(x)));
      const V high = reciprocal(1 + small), low = small * high;
      hill = high * low;
      open = x < 0 ? low : high;
      closed = x < 0 ? high : low;
    }
    V x, open, closed, hill;
  };
};

struct SiluForm {
  template <class T>
  static constexpr T limit = sizeof(T) == 4 ? 104 : 750;
  template <class V>
  static NM_INLINE V argument(V z) {
    return z;
  }
  template <class V>
  static NM_INLINE V slope(V) {
    return V{} + 1;
  }
  template <class V>
  static NM_INLINE V curve(V) {
    return V{};
  }
};

// (1 + tanh(u)) / 2 is the sigmoid of 2 u, so w = 2 sqrt(2 / pi) (z + 0.044715 z^3).
struct GeluTanhForm {
  template <class T>
  static constexpr T limit = sizeof(T) == 4 ? 10.7 : 22;
  template <class V>
  static NM_INLINE V argument(V z) {
    return z * (z * z * Number<V>(kLinear * 0.044715) + Number<V>(kLinear));
  }
  template <class V>
  static NM_INLINE V slope(V z) {
    return z * z * Number<V>(kLinear * 3 * 0.044715) + Number<V>(kLinear);
  }
  template <class V>
  static NM_INLINE V curve(V z) {
    return z * Number<V>(kLinear * 6 * 0.044715);
  }

 private:
  static constexpr double kLinear = 1.5957691216057308;
};

using Silu = Gated<SiluForm>;
using GeluTanh = Gated<GeluTanhForm>;

// z Phi(z), with Phi the normal distribution's cumulative function and phi its density: slope Phi + z phi, curve
// phi (2 - z^2).
struct Gelu {
  template <class V>
  static NM_INLINE V value(V z) {
    V x, bell;
    return z * cumulative(z, x, bell);
  }

  template <class V>
  static NM_INLINE void value_slope(V z, V& value, V& slope) {
    V x, bell, phi = cumulative(z, x, bell);
    value = z * phi;
    slope = phi + x * bell * Number<V>(kDensity);
  }

  template <class V>
  static NM_INLINE void value_slope_curve(V z, V& value, V& slope, V& curve) {
    V x, bell, phi = cumulative(z, x, bell);
    bell *= Number<V>(kDensity);
    curve = bell * (2 - x * x);
    value = z * phi;
    slope = phi + x * bell;
  }

 private:
  static constexpr double kDensity = 0.3989422804014327;  // 1 / sqrt(2 pi)

  // Phi(z), x = z where it matters and bell = e^(-x^2 / 2). Phi(-|x|) is bell times a polynomial in 1 / (1 + 0.35 |x|),
  // fitted to a relative error of 3e-8 on [0, 15], so the left tail keeps its relative precision.
  static NM_INLINE Vec<float> cumulative(Vec<float> z, Vec<float>& x, Vec<float>& bell) {
    x = clamp(z, -14.45f, 14.45f);
    bell = exp_within(x * x * -0.5f);
    const Vec<float> t = reciprocal(below_zero(x) * -0.35f + 1);
    Vec<float> p = t * -0.029163901470929225f + 0.144060698614901f;
    p = p * t - 0.2559016788695008f;
    p = p * t + 0.1593927335515808f;
    p = p * t - 0.0232637338964846f;
    p = p * t + 0.10557476723100696f;
    p = p * t + 0.11981550506148438f;
    p = p * t + 0.13986433535200532f;
    p = p * t + 0.13962125842223408f;
    const Vec<float> tail = bell * t * p;
    return x < 0 ? tail : 1 - tail;
  }

  static NM_INLINE Vec<double> cumulative(Vec<double> z, Vec<double>& x, Vec<double>& bell) {
    x = clamp(z, -40.0, 40.0);
    bell = exp_within(x * x * -0.5);
    Vec<double> phi = x;
    for (int i = 0; i < kLanes<double>; i++) phi[i] = 0.5 * ::erfc(-0.7071067811865476 * x[i]);
    return phi;
  }
};

}  // namespace NM_ISA
}  // namespace nm
