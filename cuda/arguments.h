// arguments.h - what the three ops of bindings.cpp are given, checked, and turned into an nm_problem.
//
// Every refusal names the argument, what it was and what it must be. Values of tensors are not looked at.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launchers.h"

namespace neuralmem {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(dtype);
  }
}

template <class Sizes>
std::string shape_name(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); i++) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline int32_t token_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return NM_FLOAT32;
    case ScalarType::Double: return NM_FLOAT64;
    case ScalarType::BFloat16: return NM_BFLOAT16;
    case ScalarType::Half: return NM_FLOAT16;
    default:
      STD_TORCH_CHECK(false, "q has dtype ", dtype_name(dtype), "; it must be float32, float64, bfloat16 or float16");
  }
}

inline Shape shape_of(const Tensor& x) { return Shape(x.sizes().begin(), x.sizes().end()); }

// The inputs that all ops share, as a problem. It owns the copies that had to be made, so keep it while kernels run.
class Problem {
 public:
  nm_problem c{};
  ScalarType state;
  bool has_momentum = false;

  Problem(const Tensor& q, const Tensor& k, const Tensor& v, bool decode) : q_(q) {
    STD_TORCH_CHECK(q.dim() == 4, "q has shape ", shape_name(q.sizes()), "; it must be [B, T, H, D]");
    STD_TORCH_CHECK(k.dim() == 4, "k has shape ", shape_name(k.sizes()), "; it must be [B, T, H, D]");
    c.B = q.size(0), c.T = decode ? k.size(1) : q.size(1), c.H = q.size(2), c.D = q.size(3);
    STD_TORCH_CHECK(c.D >= 1, "q has shape ", shape_name(q.sizes()), "; its head width must be at least 1");
    c.dtype = token_dtype(q.scalar_type());
    state = c.dtype == NM_FLOAT64 ? ScalarType::Double : ScalarType::Float;
    c.q = input("q", q, {c.B, decode ? 1 : c.T, c.H, c.D}, q.scalar_type());
    c.k = input("k", k, {c.B, c.T, c.H, c.D}, q.scalar_type());
    c.v = input("v", v, {c.B, c.T, c.H, c.D}, q.scalar_type());
  }

  void set_gates(const Tensor& theta, const Optional& eta, const Tensor& alpha) {
    const Shape shape{c.B, c.T, c.H};
    c.theta = input("theta", theta, shape, state);
    c.eta = eta ? input("eta", *eta, shape, state) : nullptr;
    c.alpha = input("alpha", alpha, shape, state);
    has_momentum = eta.has_value();
  }

  void set_weights(const Tensors& weights, const Tensors& momentum) {
    c.layers = static_cast<int64_t>(weights.size());
    STD_TORCH_CHECK(c.layers >= 1 && c.layers <= NM_MAX_LAYERS, "weights has ", c.layers,
                    " tensors; it must have 1 to ", NM_MAX_LAYERS);
    c.widths[0] = c.D;
    for (int64_t l = 0; l < c.layers; l++) {
      const auto sizes = weights[l].sizes();
      const bool fits = sizes.size() == 4 && sizes[2] >= 1 && (l + 1 < c.layers || sizes[2] == c.D);
      const std::string out = l + 1 < c.layers ? "D_out" : std::to_string(c.D);
      STD_TORCH_CHECK(fits, "weights[", l, "] has shape ", shape_name(sizes), "; it must be [", c.B, ", ", c.H, ", ",
                      out, ", ", c.widths[l], "] with D_out at least 1");
      c.widths[l + 1] = sizes[2];
    }
    set_states("weights", weights, true, c.weights);
    set_states("momentum", momentum, has_momentum, c.momentum);
  }

  void set_norm(const Optional& gain, const Optional& bias) {
    STD_TORCH_CHECK(gain.has_value() == bias.has_value(), "gain and bias belong together: give both, or None for both");
    c.gain = gain ? input("gain", *gain, {c.H, c.D}, state) : nullptr;
    c.bias = bias ? input("bias", *bias, {c.H, c.D}, state) : nullptr;
  }

  void set_write_mask(const Optional& mask) { c.write_mask = set_mask("write_mask", mask); }

  void set_reset(const Optional& reset, const Tensors& first_weights, const Tensors& first_momentum) {
    c.reset = set_mask("reset", reset);
    set_states("first_weights", first_weights, reset.has_value(), c.first_weights);
    set_states("first_momentum", first_momentum, reset && has_momentum, c.first_momentum);
  }

  void set_options(int64_t chunk_size, int64_t activation, bool residual, int64_t keep_every) {
    STD_TORCH_CHECK(chunk_size >= 1, "chunk_size is ", chunk_size, "; it must be at least 1");
    STD_TORCH_CHECK(activation >= NM_SILU && activation <= NM_IDENTITY, "activation is ", activation,
                    "; it must be 0 (silu), 1 (gelu), 2 (gelu_tanh) or 3 (identity)");
    STD_TORCH_CHECK(keep_every >= 0, "keep_every is ", keep_every, "; it must be at least 0");
    // A chunk longer than the text is the same as one of its length, and need not be allocated; the limit on CUDA only
    // keeps sums from overflowing, because there the kernels are made for certain sizes.
    c.chunk_size = std::min(chunk_size, std::max<int64_t>(c.T, q_.is_cpu() ? 1 : 1 << 20));
    c.activation = static_cast<int32_t>(activation);
    c.residual = residual;
    c.keep_every = std::min(keep_every, nm_chunks(&c));
    if (keep_every) c.keep_every = std::max<int64_t>(c.keep_every, 1);
  }

  bool empty() const { return c.B * c.T * c.H == 0; }  // nothing for a kernel to do
  const Tensor& q() const { return q_; }

  // A checked input's data. Kernels on CUDA read 16 bytes at once, which a view into another tensor may not allow.
  const void* input(const std::string& name, const Tensor& x, const Shape& shape, ScalarType dtype) {
    STD_TORCH_CHECK(shape_of(x) == shape, name, " has shape ", shape_name(x.sizes()), "; it must be ",
                    shape_name(shape));
    STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has dtype ", dtype_name(x.scalar_type()), "; it must be ",
                    dtype_name(dtype));
    STD_TORCH_CHECK(x.is_cuda() == q_.is_cuda() && x.is_cpu() == q_.is_cpu() &&
                        x.get_device_index() == q_.get_device_index(),
                    name, " is on another device than q");
    STD_TORCH_CHECK(x.is_contiguous(), name, " is not contiguous");
    const void* data = x.const_data_ptr();
    if (x.is_cuda() && reinterpret_cast<uintptr_t>(data) % 16) {
      copies_.push_back(torch::stable::clone(x));
      data = copies_.back().const_data_ptr();
    }
    alignas(64) static const char nothing[64] = {};
    return data ? data : nothing;  // an empty tensor is not an absent one
  }

  // One tensor per layer, shaped like its weights, or none at all.
  void set_states(const std::string& name, const Tensors& tensors, bool wanted, const void** data) {
    const int64_t number = wanted ? c.layers : 0;
    STD_TORCH_CHECK(static_cast<int64_t>(tensors.size()) == number, name, " has ", tensors.size(),
                    " tensors; it must have ", number);
    for (int64_t l = 0; l < number; l++) {
      const Shape shape{c.B, c.H, c.widths[l + 1], c.widths[l]};
      data[l] = input(name + "[" + std::to_string(l) + "]", tensors[l], shape, state);
    }
  }

 private:
  const uint8_t* set_mask(const char* name, const Optional& mask) {
    return mask ? static_cast<const uint8_t*>(input(name, *mask, {c.B, c.T}, ScalarType::Bool)) : nullptr;
  }

  Tensor q_;
  Tensors copies_;
};

}  // namespace neuralmem
