// memory_host.h - the host side of the kernels: what can run, how much workspace, which kernels in which order.
//
// Templates over nothing but launch.h's Launcher, so that a CPU test drives the same code with the emulator. The
// sequence is cut into groups of chunks, as many as a bounded workspace holds: for each, all coefficients, then the
// state pass, then the read pass over all chunks of the group at once.
#pragma once

#include "coefficients.h"
#include "read.h"
#include "state.h"

// A chunk's height as a tile: rows past its last token cost time, but not exactness.
inline int tile_rows(int64_t tokens) { return tokens <= 16 ? 16 : tokens <= 32 ? 32 : tokens <= 64 ? 64 : 128; }

inline int64_t longest_chunk(const nm_problem &p) { return p.chunk_size < p.T ? p.chunk_size : p.T; }

inline const char *cuda_reason(const nm_problem &p, int capability) {
  if (capability < 80) return "the GPU is older than compute capability 8.0";
  if (p.dtype != NM_BFLOAT16 && p.dtype != NM_FLOAT16) return "tokens are neither bfloat16 nor float16";
  if (p.layers != 2) return "the memory does not have 2 layers";
  if (p.D != 64 && p.D != 128) return "the head width is neither 64 nor 128";
  if (p.widths[1] != p.D && p.widths[1] != 2 * p.D && p.widths[1] != 4 * p.D)
    return "the hidden width is not 1, 2 or 4 times the head width";
  if (longest_chunk(p) > 128) return "a chunk has more than 128 tokens";
  if (p.activation < NM_SILU || p.activation > NM_IDENTITY) return "the activation is unknown";
  if (p.B * p.H >= INT32_MAX / 64) return "there are too many samples and heads";
  const void *const vectors[] = {p.q, p.k, p.v, p.weights[0], p.weights[1], p.momentum[0], p.momentum[1],
                                 p.first_weights[0], p.first_weights[1], p.first_momentum[0], p.first_momentum[1]};
  for (const void *x : vectors)
    if ((uintptr_t)x % 16) return "a tensor does not begin at a multiple of 16 bytes";
  if ((uintptr_t)p.gain % 8 || (uintptr_t)p.bias % 8) return "gain or bias does not begin at a multiple of 8 bytes";
  return nullptr;
}

inline RecordLayout records_of(const nm_problem &p) {
  return record_layout(p.D, p.widths[1], tile_rows(longest_chunk(p)), p.eta != nullptr);
}

// Chunks per group: what 256 MiB hold, at most 64, at least 1.
inline int64_t group_chunks(const nm_problem &p) {
  const int64_t each = p.B * p.H * records_of(p).bytes, fit = each ? (int64_t(256) << 20) / each : 1;
  int64_t count = nm_chunks(&p) < 64 ? nm_chunks(&p) : 64;
  if (count > fit) count = fit;
  return count > 1 ? count : 1;
}

inline int64_t forward_workspace(const nm_problem &p) { return p.B * p.H * group_chunks(p) * records_of(p).bytes; }

inline States states_of(const void *const *weights, const void *const *momentum, const nm_problem &p) {
  return States{(float *)weights[0], (float *)weights[1], p.eta ? (float *)momentum[0] : nullptr,
                p.eta ? (float *)momentum[1] : nullptr, p.D * p.widths[1]};
}

template <class Op_, int kD_, int kRows_>
struct Config {
  using Op = Op_;
  static constexpr int kD = kD_, kRows = kRows_;
};

// Calls visit(Config<...>()) with the types and sizes that fit the problem.
template <class Op, int kD, class Visit>
void with_rows(int rows, Visit visit) {
  if (rows == 16) visit(Config<Op, kD, 16>());
  else if (rows == 32) visit(Config<Op, kD, 32>());
  else if (rows == 64) visit(Config<Op, kD, 64>());
  else visit(Config<Op, kD, 128>());
}
template <class Visit>
void with_config(const nm_problem &p, Visit visit) {
  const int rows = tile_rows(longest_chunk(p));
#ifndef NM_BFLOAT16_ONLY  // for tests that only compile, in half the time
  if (p.dtype == NM_FLOAT16 && p.D == 64) return with_rows<fp16, 64>(rows, visit);
  if (p.dtype == NM_FLOAT16) return with_rows<fp16, 128>(rows, visit);
#endif
#ifndef NM_FLOAT16_ONLY
  if (p.D == 64) with_rows<bf16, 64>(rows, visit);
  else with_rows<bf16, 128>(rows, visit);
#endif
}

// What a block may have on every GPU from compute capability 8.0 on (8.6 and 12.0 have the least).
constexpr int kSharedLimit = 99 * 1024;

// `group`: chunks per group, group_chunks(p) or less.
inline void forward(Launcher &launch, const nm_problem &p, const nm_forward &out, void *workspace, int64_t group) {
  const int64_t heads = p.B * p.H, chunks = nm_chunks(&p);
  const States state = states_of(out.weights, out.momentum, p);
  with_config(p, [&](auto config) {
    using C = decltype(config);
    using StateSizes = StateShape<typename C::Op, C::kD, C::kRows>;
    using ReadSizes = ReadShape<typename C::Op, C::kD, C::kRows>;
    static_assert(StateSizes::kShared <= kSharedLimit && ReadSizes::kShared <= kSharedLimit, "shared memory");
    int64_t first = 0;
    do {  // once even without tokens: the state has to arrive at the output
      const int64_t count = chunks - first < group ? chunks - first : group;
      const Records records{records_of(p), (uint8_t *)workspace, first, count};
      const States start = first ? state : states_of(p.weights, p.momentum, p);
      launch(coefficient_kernel, heads * count, coefficient_shared(C::kRows),
             CoefficientArguments{p, records, C::kRows});
      launch(state_kernel<typename C::Op, C::kD, C::kRows>, heads, StateSizes::kShared,
             StateArguments{p, records, start, state, p.keep_every ? (float *)out.boundaries : nullptr, 1});
      launch(read_kernel<typename C::Op, C::kD, C::kRows>, heads * count, ReadSizes::kShared,
             ReadArguments{p, records, out.y, 0});
      first += count;
    } while (first < chunks);
  });
}
