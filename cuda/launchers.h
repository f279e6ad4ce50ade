// launchers.h - the plain C border between the kernels (no torch headers) and bindings.cpp (no CUDA headers).
//
// Tensors are contiguous. Axes: B batch, T tokens, H heads, D head width, L layers. A call is cut into chunks of
// `chunk_size` tokens from token 0 on; the last may be shorter. Equations: neuralmem/ops/neural_memory/README.md.
#pragma once

#include <stdint.h>

#define NM_MAX_LAYERS 8

enum nm_dtype { NM_FLOAT32 = 0, NM_FLOAT64 = 1, NM_BFLOAT16 = 2, NM_FLOAT16 = 3 };
enum nm_activation { NM_SILU = 0, NM_GELU = 1, NM_GELU_TANH = 2, NM_IDENTITY = 3 };

// What every entry point is given. "state dtype" is float64 for float64 tokens, else float32.
struct nm_problem {
  int64_t B, T, H, D;
  int64_t layers;                      // L, 1 to NM_MAX_LAYERS
  int64_t widths[NM_MAX_LAYERS + 1];   // D, hidden..., D: layer l maps widths[l] to widths[l + 1]
  int64_t chunk_size;
  int64_t keep_every;                  // chunks between boundary states; 0: backward is not wanted, none are written
  int32_t dtype;                       // nm_dtype of q, k, v, y
  int32_t activation;                  // nm_activation
  int32_t residual;                    // M(x) = x + f(x)
  const void *q, *k, *v;               // [B, T, H, D] in dtype
  const void *theta, *eta, *alpha;     // [B, T, H] in the state dtype; eta NULL without momentum
  const void *weights[NM_MAX_LAYERS];  // [B, H, D_out, D_in] in the state dtype
  const void *momentum[NM_MAX_LAYERS]; // like weights; NULL without momentum
  const void *first_weights[NM_MAX_LAYERS];   // what a reset goes back to; NULL without reset
  const void *first_momentum[NM_MAX_LAYERS];  // NULL without reset or momentum
  const void *gain, *bias;             // [H, D] in the state dtype, or NULL: no norm
  const uint8_t *write_mask;           // Bool [B, T] or NULL
  const uint8_t *reset;                // Bool [B, T], true only at chunk starts, or NULL
};

// The states that backward starts from: one per `keep_every` chunks (the state before chunk 0, keep_every, ...; after
// a reset where there is one), in an order of numbers that is the kernels' own. [groups, B, H, P] in the state dtype,
// P = nm_state_numbers(problem), groups = nm_groups(problem).
struct nm_forward {
  void *y;                             // [B, T, H, D] in dtype
  void *weights[NM_MAX_LAYERS];        // after the last token, [B, H, D_out, D_in] in the state dtype
  void *momentum[NM_MAX_LAYERS];
  void *boundaries;
};

struct nm_backward {
  const void *boundaries;              // as forward wrote them
  const void *dy;                      // [B, T, H, D] in dtype
  const void *dweights_end[NM_MAX_LAYERS], *dmomentum_end[NM_MAX_LAYERS];  // gradients of what forward returned;
                                       // on a CPU NULL, all of them, where there are none
  void *dq, *dk, *dv;                  // [B, T, H, D] in dtype
  void *dtheta, *deta, *dalpha;        // [B, T, H] in the state dtype; deta NULL without momentum
  void *dweights[NM_MAX_LAYERS], *dmomentum[NM_MAX_LAYERS];
  void *dfirst_weights[NM_MAX_LAYERS], *dfirst_momentum[NM_MAX_LAYERS];  // NULL without reset
  void *dgain, *dbias;                 // [B, H, D] in the state dtype, to be summed over B; NULL without norm
};

// One query per sample, read at the weights that the T tokens k, v (one unfinished chunk, 0 <= T <= chunk_size) would
// leave; nothing is written. problem.q and y are [B, 1, H, D]; problem.reset is NULL.
struct nm_decode {
  void *y;
};

static inline int64_t nm_chunks(const struct nm_problem *p) { return (p->T + p->chunk_size - 1) / p->chunk_size; }

static inline int64_t nm_groups(const struct nm_problem *p) {
  return p->keep_every ? (nm_chunks(p) + p->keep_every - 1) / p->keep_every : 0;
}

static inline int64_t nm_state_numbers(const struct nm_problem *p) {
  int64_t numbers = 0;
  for (int64_t l = 0; l < p->layers; l++) numbers += p->widths[l] * p->widths[l + 1];
  return p->eta ? 2 * numbers : numbers;
}

// The CPU kernels, one table per instruction set (cpu/dispatch.cpp). They work on the samples-and-heads
// begin <= b * H + h < end, so that the caller decides about threads, in `scratch`: as many bytes, aligned to 64, as
// scratch_bytes says for the pass. Deterministic.
enum nm_pass { NM_FORWARD = 0, NM_BACKWARD = 1, NM_DECODE = 2 };

struct nm_cpu_kernels {
  const char *name;                    // "amx", "avx512", "avx2", "portable"
  int64_t (*scratch_bytes)(const struct nm_problem *, enum nm_pass);
  void (*forward)(const struct nm_problem *, const struct nm_forward *, int64_t begin, int64_t end, void *scratch);
  void (*backward)(const struct nm_problem *, const struct nm_backward *, int64_t begin, int64_t end, void *scratch);
  void (*decode)(const struct nm_problem *, const struct nm_decode *, int64_t begin, int64_t end, void *scratch);
};

#ifdef __cplusplus
extern "C" {
#endif

// The fastest table this processor can run, or the one called `name` (NULL: the fastest). NULL if it cannot run here.
const struct nm_cpu_kernels *nm_cpu_choose(const char *name);
// Names of the tables this processor can run, fastest first, separated by commas.
const char *nm_cpu_available(void);

// The CUDA kernels. `reason` says why a problem cannot run (NULL: it can): unsupported widths, chunk, dtype.
// They return a cudaError_t. Workspace: device memory that the caller allocates, nothing is kept in it between calls.
const char *nm_cuda_reason(const struct nm_problem *, int compute_capability);  // 90 for 9.0
int64_t nm_cuda_forward_workspace(const struct nm_problem *);                   // bytes
int64_t nm_cuda_backward_workspace(const struct nm_problem *);
int nm_cuda_forward(const struct nm_problem *, const struct nm_forward *, void *workspace, void *stream);
int nm_cuda_backward(const struct nm_problem *, const struct nm_backward *, void *workspace, void *stream);
int nm_cuda_decode(const struct nm_problem *, const struct nm_decode *, void *workspace, void *stream);
int nm_cuda_capability(int device);                                             // 90 for 9.0, negative on error
const char *nm_cuda_error(int error);

#ifdef __cplusplus
}
#endif
