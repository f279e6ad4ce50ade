// build: -O1 -std=c++17 -Wall -Wextra
// test_gpu_gradients.cpp - forward and backward of the CUDA kernels through their own host code, without torch: every
// gradient against differences of the definition in double precision (reference.h).
//
// The loss is a random sum of what forward returns. Along a random direction of unit variance, the loss's slope by the
// definition and by the kernels' gradient differ by the gradient's error, on average over directions. Run by the
// emulator; with -DNM_ON_GPU, linked with memory.cu and backward.cu, on a GPU, where compute-sanitizer watches it.
// Tighter gates: tests/native/test_gpu_backward.py.
#include "device_call.h"
#ifndef NM_ON_GPU
#include "../gpu/backward_host.h"
#include "../gpu/decode.h"
#include "../gpu/memory_host.h"
#endif

using namespace reference;

constexpr int kDirections = 3;
constexpr double kAllowed = .04;  // of a gradient's norm; measured in the emulator: at most .019

static int failures = 0;

static void check(bool good, const char *what, double got, double allowed) {
  if (good) return;
  printf("  FAIL %s: %.3g, allowed %.3g\n", what, got, allowed);
  failures++;
}

#ifdef NM_ON_GPU
static void finish(int error) {
  if (!error) error = cudaDeviceSynchronize();
  check(error == 0, nm_cuda_error(error), error, 0);
}
static void run(const nm_problem &p, const nm_forward &forward, const nm_backward &backward) {
  Scratch workspace(nm_cuda_forward_workspace(&p)), backward_workspace(nm_cuda_backward_workspace(&p));
  finish(nm_cuda_forward(&p, &forward, workspace.data, nullptr));
  finish(nm_cuda_backward(&p, &backward, backward_workspace.data, nullptr));
}
#else
static void run(const nm_problem &p, const nm_forward &out, const nm_backward &gradients) {
  Scratch workspace(forward_workspace(p)), backward_workspace(backward::workspace_bytes(p));
  Launcher launch;
  forward(launch, p, out, workspace.data, group_chunks(p));
  backward::run(launch, p, gradients, backward_workspace.data);
}
#endif

static double dot(const Numbers &x, const Numbers &y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); i++) sum += x[i] * y[i];
  return sum;
}

template <class Op>
static void gradient_case(const char *name, const Sizes &s, int keep_every) {
  printf("%s: D %d hidden %d chunk %d T %d:", name, s.D, s.hidden, s.chunk, s.T);
  const Inputs in = make_inputs(s, 5 + s.T, round_to<Op>);
  std::mt19937 random(s.T);
  std::normal_distribution<double> normal;
  auto draw = [&](size_t count, double scale) {
    Numbers x(count);
    for (double &value : x) value = round_to<Op>(scale * normal(random));
    return x;
  };
  const size_t pushed = in.s1.size();
  const Numbers dy = draw(in.q.size(), 1), dw1 = draw(in.w1.size(), .1), dw2 = draw(in.w2.size(), .1),
                ds1 = draw(pushed, .1), ds2 = draw(pushed, .1);
  auto loss = [&](const Inputs &x) {
    const Outputs out = token_loop(x);
    return dot(dy, out.y) + dot(dw1, out.w1) + dot(dw2, out.w2) + dot(ds1, out.s1) + dot(ds2, out.s2);
  };

  DeviceCall<Op> call(in, keep_every);
  const nm_problem &p = call.problem;
  auto take = [&](const Numbers &like, size_t size, int times = 1) {
    return like.empty() ? nullptr : call.take(like.size() * size * times);
  };
  nm_forward out{};
  nm_backward back{};
  out.y = take(in.q, 2), back.dy = call.template tensor<Op>(dy);
  const Numbers *states[] = {&in.w1, &in.w2, &in.s1, &in.s2}, *ends[] = {&dw1, &dw2, &ds1, &ds2};
  const Numbers *first[] = {&in.first_w1, &in.first_w2, &in.first_s1, &in.first_s2};
  for (int l = 0; l < 2; l++) {
    out.weights[l] = take(*states[l], 4), out.momentum[l] = take(*states[2 + l], 4);
    back.dweights_end[l] = call.template tensor<float>(*ends[l]);
    back.dmomentum_end[l] = call.template tensor<float>(*ends[2 + l]);
    back.dweights[l] = take(*states[l], 4), back.dmomentum[l] = take(*states[2 + l], 4);
    back.dfirst_weights[l] = take(*first[l], 4), back.dfirst_momentum[l] = take(*first[2 + l], 4);
  }
  out.boundaries = call.take(nm_groups(&p) * s.B * s.H * nm_state_numbers(&p) * 4);
  back.boundaries = out.boundaries;
  back.dq = take(in.q, 2), back.dk = take(in.k, 2), back.dv = take(in.v, 2);
  back.dtheta = take(in.theta, 4), back.deta = take(in.eta, 4), back.dalpha = take(in.alpha, 4);
  back.dgain = take(in.gain, 4, s.B), back.dbias = take(in.bias, 4, s.B);
  run(p, out, back);

  auto compare = [&](const char *what, Numbers Inputs::*input, const void *data, int bytes, int samples = 1) {
    const size_t count = (in.*input).size();
    if (!count) return;
    const Numbers parts = bytes == 2 ? numbers<Op>(data, count) : numbers<float>(data, count * samples);
    Numbers gradient(count);
    for (size_t i = 0; i < parts.size(); i++) gradient[i % count] += parts[i];
    double difference = 0, square = 0;
    for (int i = 0; i < kDirections; i++) {
      Numbers direction(count);
      for (double &x : direction) x = normal(random);
      constexpr double kStep = 1e-5;
      Inputs ahead = in, behind = in;
      for (size_t j = 0; j < count; j++) {
        (ahead.*input)[j] += kStep * direction[j];
        (behind.*input)[j] -= kStep * direction[j];
      }
      const double slope = (loss(ahead) - loss(behind)) / (2 * kStep), error = dot(gradient, direction) - slope;
      difference += error * error / kDirections, square += slope * slope / kDirections;
    }
    const double norm = sqrt(dot(gradient, gradient)), error = sqrt(difference) / norm;
    printf(" %s %.4f", what, error);
    check(norm > 0 && error <= kAllowed, what, error, kAllowed);
    check(square > 0, "the loss depends on it", square, 0);
  };
  compare("q", &Inputs::q, back.dq, 2);
  compare("k", &Inputs::k, back.dk, 2);
  compare("v", &Inputs::v, back.dv, 2);
  compare("theta", &Inputs::theta, back.dtheta, 4);
  compare("eta", &Inputs::eta, back.deta, 4);
  compare("alpha", &Inputs::alpha, back.dalpha, 4);
  compare("w1", &Inputs::w1, back.dweights[0], 4);
  compare("w2", &Inputs::w2, back.dweights[1], 4);
  compare("s1", &Inputs::s1, back.dmomentum[0], 4);
  compare("s2", &Inputs::s2, back.dmomentum[1], 4);
  compare("first w1", &Inputs::first_w1, back.dfirst_weights[0], 4);
  compare("first w2", &Inputs::first_w2, back.dfirst_weights[1], 4);
  compare("first s1", &Inputs::first_s1, back.dfirst_momentum[0], 4);
  compare("first s2", &Inputs::first_s2, back.dfirst_momentum[1], 4);
  compare("gain", &Inputs::gain, back.dgain, 4, s.B);
  compare("bias", &Inputs::bias, back.dbias, 4, s.B);
  printf("\n");
}

int main() {
  Sizes s;
  s.B = 2, s.H = 2, s.T = 41, s.chunk = 16, s.mask = s.reset = true;
  gradient_case<bf16>("all features", s, 2);
  s = Sizes();
  s.hidden = 128, s.T = 70, s.chunk = 32, s.momentum = s.residual = false, s.activation = NM_GELU;
  gradient_case<fp16>("no momentum", s, 3);
  s = Sizes();
  s.D = 128, s.hidden = 256, s.T = 40, s.chunk = 24, s.norm = false, s.activation = NM_GELU_TANH;
  gradient_case<bf16>("wide", s, 1);
  printf(failures ? "%d FAILURES\n" : "PASS\n", failures);
  return failures != 0;
}
