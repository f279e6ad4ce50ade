// memory.cpp - the CPU kernels of one instruction set: whole sequences, forward, backward and decode.
//
// Compiled once per instruction set with -DNM_ISA=<name>; dispatch.cpp chooses. float64 tokens are computed in float64,
// all others in float32, with bfloat16 factors where tokens are bfloat16 and the processor multiplies them.
#include "memory_backward.h"

namespace nm::NM_ISA {
namespace {

// Numbers of the states that backward computes and keeps within a group of chunks.
int64_t kept_numbers(const nm_problem& p) {
  const int64_t group = p.keep_every < nm_chunks(&p) ? p.keep_every : nm_chunks(&p);
  return group > 1 ? group * nm_state_numbers(&p) : 0;
}

template <Operand O, class T>
void forward(const nm_problem& p, const nm_forward& out, int64_t begin, int64_t end, void* scratch) {
  const int64_t numbers = nm_state_numbers(&p);
  Arena arena(scratch);
  Memory<O, T> memory(p, arena, NM_FORWARD);
  for (int64_t which = begin; which < end; which++) {
    memory.enter(which);
    memory.load_state(p.weights, p.momentum, memory.W, memory.S);
    for (int64_t chunk = 0; chunk < nm_chunks(&p); chunk++) {
      memory.restart(chunk);
      if (p.keep_every && chunk % p.keep_every == 0)
        memory.save_boundary(static_cast<T*>(out.boundaries) + (chunk / p.keep_every * p.B * p.H + which) * numbers);
      memory.load_chunk(chunk);
      memory.load_queries();
      memory.backpropagate();
      memory.read();
      memory.store_reads(out.y);
      memory.advance();
    }
    memory.store_state(memory.W, memory.S, out.weights, out.momentum);
  }
}

template <Operand O, class T>
void backward(const nm_problem& p, const nm_backward& out, int64_t begin, int64_t end, void* scratch) {
  const int64_t numbers = nm_state_numbers(&p), chunks = nm_chunks(&p), group = p.keep_every;
  Arena arena(scratch);
  MemoryBackward<O, T> memory(p, arena, NM_BACKWARD);
  T* kept = arena.row<T>(kept_numbers(p));
  for (int64_t which = begin; which < end; which++) {
    memory.enter(which);
    memory.start(out);
    for (int64_t first = (chunks - 1) / group * group; first >= 0; first -= group) {
      const int64_t last = (first + group < chunks ? first + group : chunks) - 1;
      const T* boundary = static_cast<const T*>(out.boundaries) + (first / group * p.B * p.H + which) * numbers;
      memory.load_boundary(boundary);
      // Forward over the group, keeping the state before each chunk, then back.
      for (int64_t chunk = first; chunk < last; chunk++) {
        if (chunk > first) memory.restart(chunk);
        memory.save_boundary(kept + (chunk - first) * numbers);
        memory.load_chunk(chunk);
        memory.backpropagate();
        memory.advance();
      }
      if (last > first) memory.restart(last);
      for (int64_t chunk = last; chunk >= first; chunk--) {
        if (chunk < last) memory.load_boundary(kept + (chunk - first) * numbers);
        memory.load_chunk(chunk);
        memory.load_queries();
        memory.load_output_gradients(out.dy);
        memory.turn();
        memory.backpropagate(true);
        memory.read();
        memory.differentiate();
        memory.store_token_gradients(out);
        if (memory.resets(chunk)) memory.hand_to_first();
      }
    }
    memory.finish(out);
  }
}

template <Operand O, class T>
void decode(const nm_problem& p, const nm_decode& out, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  Memory<O, T> memory(p, arena, NM_DECODE);
  for (int64_t which = begin; which < end; which++) {
    memory.enter(which);
    memory.load_chunk(0);
    if (memory.n) {
      for (int l = 0; l < memory.L; l++)
        load_weights(p.weights[l], which, memory.width[l], memory.width[l + 1], memory.W[l]);
      memory.backpropagate();
    }
    load_token(p.q, p.dtype, which * p.D, memory.D, memory.x[0][0]);
    memory.read_at_end();
    store_token(memory.y[0], p.dtype, which * p.D, memory.D, out.y);
  }
}

// Products of gates soon fall below 1e-38, where a processor computes a hundred times slower and nothing is gained:
// while the kernels run, such numbers are zero.
class FlushDenormals {
#if defined(__SSE__)
 public:
  FlushDenormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
 public:
  FlushDenormals() : before_(__builtin_aarch64_get_fpcr64()) { __builtin_aarch64_set_fpcr64(before_ | (1ull << 24)); }
  ~FlushDenormals() { __builtin_aarch64_set_fpcr64(before_); }

 private:
  unsigned long long before_;
#else
 public:
  ~FlushDenormals() {}
#endif
};

template <Operand O, class T>
int64_t scratch_bytes(const nm_problem& p, nm_pass pass) {
  Arena arena(nullptr);
  if (pass == NM_BACKWARD) {
    MemoryBackward<O, T> memory(p, arena, pass);
    arena.row<T>(kept_numbers(p));
  } else {
    Memory<O, T> memory(p, arena, pass);
  }
  return arena.bytes();
}

// Calls run<operand, number type> for the problem's tokens.
#define NM_RUN(run, p, ...)                                                          \
  (p)->dtype == NM_FLOAT64    ? run<Operand::full, double>(*(p), __VA_ARGS__)        \
  : (p)->dtype == NM_BFLOAT16 ? run<Operand::bf16, float>(*(p), __VA_ARGS__)         \
                              : run<Operand::full, float>(*(p), __VA_ARGS__)

int64_t scratch_bytes_any(const nm_problem* p, nm_pass pass) { return NM_RUN(scratch_bytes, p, pass); }

void forward_any(const nm_problem* p, const nm_forward* out, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  NM_RUN(forward, p, *out, begin, end, scratch);
}

void backward_any(const nm_problem* p, const nm_backward* out, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  NM_RUN(backward, p, *out, begin, end, scratch);
}

void decode_any(const nm_problem* p, const nm_decode* out, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  NM_RUN(decode, p, *out, begin, end, scratch);
}

}  // namespace
}  // namespace nm::NM_ISA

#define NM_JOIN_(a, b) a##b
#define NM_JOIN(a, b) NM_JOIN_(a, b)
#define NM_TEXT_(a) #a
#define NM_TEXT(a) NM_TEXT_(a)

extern "C" const nm_cpu_kernels NM_JOIN(nm_cpu_, NM_ISA) = {
    NM_TEXT(NM_ISA), nm::NM_ISA::scratch_bytes_any, nm::NM_ISA::forward_any, nm::NM_ISA::backward_any,
    nm::NM_ISA::decode_any};
