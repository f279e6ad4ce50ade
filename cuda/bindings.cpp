// bindings.cpp - schemas of torch.ops.neuralmem.* and their CPU and CUDA implementations, through the stable ABI.
//
// One library serves torch 2.11 and later, with and without CUDA. So it refers to no symbol of libtorch_cuda: the only
// one it needs, the current stream, is looked up when an op first runs. Fakes and gradients are registered in Python.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <tuple>

#ifdef NM_WITH_CUDA
#include <dlfcn.h>
#endif

#include "arguments.h"
#include "blocks.h"

extern "C" const char nm_record[];  // a marker, then JSON: what this library was built from (neuralmem/build.py)

namespace neuralmem {
namespace {

// Raised with every change of a schema or of its meaning; neuralmem/backends.py refuses any other number.
constexpr int kInterface = 2;

const nm_cpu_kernels& cpu_kernels() {
  static const nm_cpu_kernels* const kernels = [] {
    const char* name = std::getenv("NEURALMEM_CPU_ISA");
    if (name && !*name) name = nullptr;
    const nm_cpu_kernels* chosen = nm_cpu_choose(name);
    STD_TORCH_CHECK(chosen, "NEURALMEM_CPU_ISA is '", name ? name : "", "', which cannot run here; available: ",
                    nm_cpu_available());
    return chosen;
  }();
  return *kernels;
}

#ifdef NM_WITH_CUDA
void* current_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get_stream, "this build of torch has no CUDA support");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device, &stream) == 0, "cannot get the current CUDA stream");
  return stream;
}

// One launch on the current stream. The workspace belongs to the caching allocator, which knows the stream.
template <class Outputs>
void run_on_cuda(const Problem& p, const Outputs& outputs, int64_t (*workspace_bytes)(const nm_problem*),
                 int (*launch)(const nm_problem*, const Outputs*, void*, void*)) {
  const int32_t device = p.q().get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const char* reason = nm_cuda_reason(&p.c, nm_cuda_capability(device));
  STD_TORCH_CHECK(!reason, "the CUDA kernels cannot run this call: ", reason);
  const Tensor workspace = torch::stable::new_empty(p.q(), {workspace_bytes(&p.c)}, ScalarType::Byte);
  const int error = launch(&p.c, &outputs, workspace.mutable_data_ptr(), current_stream(device));
  STD_TORCH_CHECK(error == 0, "CUDA: ", nm_cuda_error(error));
}
#endif

// Memory that calls use again; never destroyed, since tensors may be freed while the process ends.
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

// The kernels of one sample and head after another, in as many pieces as torch may use threads. A thread is worth
// waking for some ten microseconds of work, here 100,000 multiply-adds of one pass over the weights.
template <class Outputs>
void run_on_cpu(const Problem& p, const Outputs& outputs, nm_pass pass,
                void (*kernel)(const nm_problem*, const Outputs*, int64_t, int64_t, void*)) {
  const int64_t all = p.c.B * p.c.H, work = (p.c.T + 1) * nm_state_numbers(&p.c);
  const int64_t worthwhile = std::max<int64_t>(1, all * work / 100000);
  const int64_t pieces = std::min({all, worthwhile, int64_t(torch::stable::get_num_threads())});
  const int64_t each = (cpu_kernels().scratch_bytes(&p.c, pass) + 4095) / 4096 * 4096;
  char* scratch = static_cast<char*>(blocks().take(pieces * each));
  STD_TORCH_CHECK(scratch, "chunk_size is ", p.c.chunk_size, ", for which ", pieces * each >> 20,
                  " MiB of scratch memory are needed, and there are not so many");
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      kernel(&p.c, &outputs, all * i / pieces, all * (i + 1) / pieces, scratch + i * each);
  });
  blocks().give(scratch, pieces * each);
}

void run(const Problem& p, const nm_forward& outputs) {
#ifdef NM_WITH_CUDA
  if (p.q().is_cuda()) return run_on_cuda(p, outputs, nm_cuda_forward_workspace, nm_cuda_forward);
#endif
  run_on_cpu(p, outputs, NM_FORWARD, cpu_kernels().forward);
}

void run(const Problem& p, const nm_backward& outputs) {
#ifdef NM_WITH_CUDA
  if (p.q().is_cuda()) return run_on_cuda(p, outputs, nm_cuda_backward_workspace, nm_cuda_backward);
#endif
  run_on_cpu(p, outputs, NM_BACKWARD, cpu_kernels().backward);
}

void run(const Problem& p, const nm_decode& outputs) {
#ifdef NM_WITH_CUDA
  if (p.q().is_cuda()) return run_on_cuda(p, outputs, nm_cuda_forward_workspace, nm_cuda_decode);
#endif
  run_on_cpu(p, outputs, NM_DECODE, cpu_kernels().decode);
}

// One new tensor per tensor of `like`, their data in `data`. Where no kernel runs they are copies of `source`, or zero.
Tensors outputs_like(const Problem& p, const Tensors& like, const Tensors* source, void** data) {
  Tensors made;
  for (size_t l = 0; l < like.size(); l++) {
    if (!p.empty()) made.push_back(torch::stable::new_empty(like[l], like[l].sizes()));
    else if (source) made.push_back(torch::stable::clone((*source)[l]));
    else made.push_back(torch::stable::new_zeros(like[l], like[l].sizes()));
    data[l] = made.back().mutable_data_ptr();
  }
  return made;
}

// A new tensor of the state's dtype, or an empty one where the quantity does not exist.
Tensor output(const Problem& p, bool exists, const Shape& shape, void** data) {
  if (!exists) return torch::stable::new_empty(p.q(), {0}, p.state);
  Tensor made = p.empty() ? torch::stable::new_zeros(p.q(), shape, p.state)
                          : torch::stable::new_empty(p.q(), shape, p.state);
  *data = made.mutable_data_ptr();
  return made;
}

// Boundary states [groups, B, H, P]; on a CPU in memory that is used again.
Tensor boundary_tensor(const Problem& p, const Shape& shape, void** data) {
  if (!p.q().is_cpu() || !nm_groups(&p.c) || p.empty()) return output(p, true, shape, data);
  const int64_t numbers = shape[0] * shape[1] * shape[2] * shape[3];
  const int64_t bytes = numbers * (p.state == ScalarType::Double ? 8 : 4);
  *data = blocks().take(bytes);
  STD_TORCH_CHECK(*data, "the states before every ", p.c.keep_every, " chunks need ", bytes >> 20,
                  " MiB, and there are not so many; a larger checkpoint_every keeps fewer");
  const Shape strides{shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
  return torch::stable::from_blob(*data, shape, strides, p.q().device(), p.state,
                                  [bytes](void* block) { blocks().give(block, bytes); });
}

std::tuple<Tensor, Tensors, Tensors, Tensor> neural_memory(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& theta, const Optional& eta, const Tensor& alpha,
    const Tensors& weights, const Tensors& momentum, const Tensors& first_weights, const Tensors& first_momentum,
    const Optional& gain, const Optional& bias, const Optional& write_mask, const Optional& reset, int64_t chunk_size,
    int64_t activation, bool residual, int64_t keep_every) {
  Problem p(q, k, v, false);
  p.set_gates(theta, eta, alpha);
  p.set_weights(weights, momentum);
  p.set_norm(gain, bias);
  p.set_write_mask(write_mask);
  p.set_reset(reset, first_weights, first_momentum);
  p.set_options(chunk_size, activation, residual, keep_every);

  nm_forward outputs{};
  Tensor y = torch::stable::empty_like(q);
  outputs.y = y.mutable_data_ptr();
  Tensors weights_after = outputs_like(p, weights, &weights, outputs.weights);
  Tensors momentum_after = outputs_like(p, momentum, &momentum, outputs.momentum);
  const Shape states{nm_groups(&p.c), p.c.B, p.c.H, nm_state_numbers(&p.c)};
  Tensor boundaries = boundary_tensor(p, states, &outputs.boundaries);
  if (!p.empty()) run(p, outputs);
  return {y, weights_after, momentum_after, boundaries};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor>
neural_memory_backward(
    const Tensor& boundaries, const Tensor& dy, const Tensors& dweights_end, const Tensors& dmomentum_end,
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& theta, const Optional& eta, const Tensor& alpha,
    const Tensors& weights, const Tensors& momentum, const Tensors& first_weights, const Tensors& first_momentum,
    const Optional& gain, const Optional& bias, const Optional& write_mask, const Optional& reset, int64_t chunk_size,
    int64_t activation, bool residual, int64_t keep_every) {
  Problem p(q, k, v, false);
  p.set_gates(theta, eta, alpha);
  p.set_weights(weights, momentum);
  p.set_norm(gain, bias);
  p.set_write_mask(write_mask);
  p.set_reset(reset, first_weights, first_momentum);
  p.set_options(chunk_size, activation, residual, keep_every);
  STD_TORCH_CHECK(keep_every >= 1, "keep_every is ", keep_every, "; backward needs the boundary states of at least 1");

  nm_backward outputs{};
  const Shape states{nm_groups(&p.c), p.c.B, p.c.H, nm_state_numbers(&p.c)};
  outputs.boundaries = p.input("boundaries", boundaries, states, p.state);
  outputs.dy = p.input("dy", dy, {p.c.B, p.c.T, p.c.H, p.c.D}, q.scalar_type());
  const bool ends = !q.is_cpu() || !dweights_end.empty();  // most losses read y alone, and the CPU needs no zeros then
  p.set_states("dweights_end", dweights_end, ends, outputs.dweights_end);
  p.set_states("dmomentum_end", dmomentum_end, ends && p.has_momentum, outputs.dmomentum_end);

  Tensor dq = torch::stable::empty_like(q), dk = torch::stable::empty_like(k), dv = torch::stable::empty_like(v);
  outputs.dq = dq.mutable_data_ptr(), outputs.dk = dk.mutable_data_ptr(), outputs.dv = dv.mutable_data_ptr();
  const Shape gates{p.c.B, p.c.T, p.c.H}, norms{p.c.B, p.c.H, p.c.D};
  Tensor dtheta = output(p, true, gates, &outputs.dtheta);
  Tensor deta = output(p, p.has_momentum, gates, &outputs.deta);
  Tensor dalpha = output(p, true, gates, &outputs.dalpha);
  Tensors dweights = outputs_like(p, weights, ends ? &dweights_end : nullptr, outputs.dweights);
  Tensors dmomentum = outputs_like(p, momentum, ends ? &dmomentum_end : nullptr, outputs.dmomentum);
  Tensors dfirst_weights = outputs_like(p, first_weights, nullptr, outputs.dfirst_weights);
  Tensors dfirst_momentum = outputs_like(p, first_momentum, nullptr, outputs.dfirst_momentum);
  Tensor dgain = output(p, gain.has_value(), norms, &outputs.dgain);
  Tensor dbias = output(p, bias.has_value(), norms, &outputs.dbias);
  if (!p.empty()) run(p, outputs);
  return {dq, dk, dv, dtheta, deta, dalpha, dweights, dmomentum, dfirst_weights, dfirst_momentum, dgain, dbias};
}

Tensor neural_memory_decode(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& theta, const Optional& eta,
                            const Tensor& alpha, const Tensors& weights, const Tensors& momentum, const Optional& gain,
                            const Optional& bias, const Optional& write_mask, int64_t activation, bool residual) {
  Problem p(q, k, v, true);
  p.set_gates(theta, eta, alpha);
  p.set_weights(weights, momentum);
  p.set_norm(gain, bias);
  p.set_write_mask(write_mask);
  p.set_options(std::max<int64_t>(p.c.T, 1), activation, residual, 0);
  Tensor y = torch::stable::empty_like(q);
  const nm_decode outputs{y.mutable_data_ptr()};
  if (p.c.B > 0 && p.c.H > 0) run(p, outputs);
  return y;
}

// JSON for neuralmem/backends.py.
std::string native_info() {
  std::string chosen, trouble;
  try {
    chosen = cpu_kernels().name;
  } catch (const std::exception& error) {
    trouble = "NEURALMEM_CPU_ISA names an instruction set that cannot run here";
  }
  return "{\"interface\": " + std::to_string(kInterface) + ", \"cpu\": \"" + chosen + "\", \"trouble\": \"" + trouble +
         "\", \"runs\": \"" + nm_cpu_available() + "\", \"record\": " + std::strchr(nm_record, '{') + "}";
}

// Why the CUDA kernels cannot run calls of this kind; "": they can. `widths` are D, hidden..., D. To be asked once per
// kind: torch (2.13) leaks a few bytes with every string that an op returns.
std::string cuda_refuses([[maybe_unused]] int64_t dtype, [[maybe_unused]] const Shape& widths,
                         [[maybe_unused]] int64_t chunk_size, [[maybe_unused]] int64_t activation,
                         [[maybe_unused]] bool momentum, [[maybe_unused]] bool norm,
                         [[maybe_unused]] int64_t capability) {
#ifdef NM_WITH_CUDA
  if (widths.size() < 2 || widths.size() > NM_MAX_LAYERS + 1) return "weights must have 1 to 8 tensors";
  static const int64_t something = 0;
  nm_problem c{};
  c.B = c.H = c.residual = 1;
  c.T = c.chunk_size = chunk_size;
  c.D = widths[0];
  c.layers = static_cast<int64_t>(widths.size()) - 1;
  std::copy(widths.begin(), widths.end(), c.widths);
  c.dtype = static_cast<int32_t>(dtype);
  c.activation = static_cast<int32_t>(activation);
  if (momentum) c.eta = &something;
  if (norm) c.gain = c.bias = &something;
  const char* reason = nm_cuda_reason(&c, static_cast<int>(capability));
  return reason ? reason : "";
#else
  return "this library was built without CUDA kernels";
#endif
}

}  // namespace
}  // namespace neuralmem

#define NM_INPUTS                                                                                         \
  "Tensor q, Tensor k, Tensor v, Tensor theta, Tensor? eta, Tensor alpha, Tensor[] weights, "             \
  "Tensor[] momentum, Tensor[] first_weights, Tensor[] first_momentum, Tensor? gain, Tensor? bias, "      \
  "Tensor? write_mask, Tensor? reset, int chunk_size, int activation, bool residual, int keep_every"

STABLE_TORCH_LIBRARY(neuralmem, m) {
  m.def("neural_memory(" NM_INPUTS ") -> (Tensor y, Tensor[] weights, Tensor[] momentum, Tensor boundaries)");
  m.def("neural_memory_backward(Tensor boundaries, Tensor dy, Tensor[] dweights_end, Tensor[] dmomentum_end, " NM_INPUTS
        ") -> (Tensor dq, Tensor dk, Tensor dv, Tensor dtheta, Tensor deta, Tensor dalpha, Tensor[] dweights, "
        "Tensor[] dmomentum, Tensor[] dfirst_weights, Tensor[] dfirst_momentum, Tensor dgain, Tensor dbias)");
  m.def("neural_memory_decode(Tensor q, Tensor k, Tensor v, Tensor theta, Tensor? eta, Tensor alpha, Tensor[] weights, "
        "Tensor[] momentum, Tensor? gain, Tensor? bias, Tensor? write_mask, int activation, bool residual) "
        "-> Tensor y");
  m.def("native_info() -> str");
  m.def("cuda_refuses(int dtype, int[] widths, int chunk_size, int activation, bool momentum, bool norm, "
        "int capability) -> str");
}

#define NM_IMPLEMENT(m)                                                                    \
  m.impl("neural_memory", TORCH_BOX(&neuralmem::neural_memory));                           \
  m.impl("neural_memory_backward", TORCH_BOX(&neuralmem::neural_memory_backward));         \
  m.impl("neural_memory_decode", TORCH_BOX(&neuralmem::neural_memory_decode))

STABLE_TORCH_LIBRARY_IMPL(neuralmem, CPU, m) { NM_IMPLEMENT(m); }
#ifdef NM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(neuralmem, CUDA, m) { NM_IMPLEMENT(m); }
#endif
STABLE_TORCH_LIBRARY_IMPL(neuralmem, CompositeExplicitAutograd, m) {
  m.impl("native_info", TORCH_BOX(&neuralmem::native_info));
  m.impl("cuda_refuses", TORCH_BOX(&neuralmem::cuda_refuses));
}
