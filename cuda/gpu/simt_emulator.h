// simt_emulator.h - the CPU half of simt.h: a SIMT emulator in which every CUDA thread is a fibre.
//
// A fibre runs until it meets a barrier or a collective. The last lane of a warp to arrive computes the collective for
// all 32, with the fragment layouts of the PTX manual. Shared memory starts as NaN and ends at an unmapped page; data
// races (simt_races.h), lanes of a warp that meet in different collectives, barriers that not every thread reaches,
// and ldmatrix addresses that are unaligned or outside are errors. `sim::schedule` chooses who runs next: 0 takes the
// warps in turn, other seeds a random order; odd ones let a warp run ahead as far as it can.
//
// Not modelled: clusters, asynchronous copies, the order of sums inside an mma (compare with a tolerance).
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <functional>
#include <random>
#include <vector>

#include "../half.h"
#include "simt_races.h"

#if !defined(__x86_64__) || defined(SIMT_USE_UCONTEXT)
#define SIMT_UCONTEXT 1
#include <ucontext.h>
#endif

#define KERNEL static
#define LAUNCH_BOUNDS(threads)
#define DEVICE_FN static inline
#define METHOD inline
#define UNROLL
#define UNROLL_2
#define UNROLL_1

namespace sim {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kPage = 4096;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fibre {
#ifdef SIMT_UCONTEXT
  ucontext_t context;
#else
  void *stack_pointer;
#endif
  uint8_t *stack = nullptr;
  int barriers = 0;  // met so far
  State state = State::kDone;
};

struct Warp {
  int arrived = 0;
  uint32_t epoch = 0;
  const void *collective = nullptr;  // which one its lanes are meeting in
  void *operand[32];
};

inline unsigned schedule = 0;
// Faults that a test can inject, to show that it would see them: leave out every block's n-th block_sync, or give the
// last accumulator of each lane to the wrong column.
inline int dropped_barrier = -1;
inline bool wrong_lane = false;
inline int64_t faults = 0;  // how often that has happened
inline std::vector<Fibre> fibres;
inline std::vector<Warp> warps;
inline std::function<void()> body;
inline uint8_t *shared;
inline size_t shared_bytes;
inline int current, threads;
inline int64_t block;
inline uint32_t epoch = 1;

[[noreturn]] inline void fail(const char *what) {
  fprintf(stderr, "emulator: %s (block %lld, thread %d)\n", what, (long long)block, current);
  fflush(nullptr);
  _Exit(3);
}

#ifdef SIMT_UCONTEXT
inline ucontext_t scheduler;
inline void yield() { swapcontext(&fibres[current].context, &scheduler); }
#else
inline void *scheduler;
// Saves the callee-saved registers of the System V ABI, swaps stacks, restores.
extern "C" void simt_switch_stack(void **save, void *to);
asm(".text\n.weak simt_switch_stack\nsimt_switch_stack:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
inline void yield() { simt_switch_stack(&fibres[current].stack_pointer, scheduler); }
#endif

inline void fibre_entry() {
  body();
  fibres[current].state = State::kDone;
  yield();
  abort();  // a finished fibre is never resumed
}

inline void prepare(Fibre &fibre) {
  if (!fibre.stack) fibre.stack = (uint8_t *)aligned_alloc(kPage, kStackBytes);
  fibre.state = State::kReady, fibre.barriers = 0;
#ifdef SIMT_UCONTEXT
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack;
  fibre.context.uc_stack.ss_size = kStackBytes;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, fibre_entry, 0);
#else
  void **top = (void **)(fibre.stack + kStackBytes - 64);
  *--top = nullptr;               // keeps the stack 16-byte aligned at entry
  *--top = (void *)fibre_entry;   // return address of the first switch
  fibre.stack_pointer = top - 6;  // room for the six popped registers
#endif
}

inline void resume(int thread) {
  current = thread;
#ifdef SIMT_UCONTEXT
  swapcontext(&scheduler, &fibres[thread].context);
#else
  simt_switch_stack(&scheduler, fibres[thread].stack_pointer);
#endif
}

inline void release(State waiting, int first, int count) {
  for (int i = first; i < first + count; i++)
    if (fibres[i].state == waiting) fibres[i].state = State::kReady;
}

// All 32 lanes bring an operand; the last to arrive calls compute(operands). `name` tells collectives apart.
template <class Compute>
void collective(const void *name, void *operand, Compute compute) {
  Warp &warp = warps[current / 32];
  if (warp.arrived && warp.collective != name) fail("lanes of a warp meet in different collectives");
  warp.collective = name;
  warp.operand[current % 32] = operand;
  if (++warp.arrived == 32) {
    compute(warp.operand);
    warp.arrived = 0;
    release(State::kAtWarp, current / 32 * 32, 32);
  } else {
    fibres[current].state = State::kAtWarp;
    yield();
  }
}

inline Access now() { return {epoch, warps[current / 32].epoch, current}; }

inline bool in_shared(const void *p, size_t bytes) {
  return (const uint8_t *)p >= shared && (const uint8_t *)p + bytes <= shared + shared_bytes;
}

// Runs the lanes of one warp once each, from a random lane on. False: none could run.
inline bool step(int warp, unsigned random) {
  bool ran = false;
  for (int i = 0; i < 32; i++) {
    const int thread = warp * 32 + (i + random) % 32;
    if (fibres[thread].state == State::kReady) resume(thread), ran = true;
  }
  return ran;
}

inline void run_block(std::mt19937 &random) {
  const int count = threads / 32;
  warps.assign(count, {});
  races.first_of_block = ++epoch;
  for (int i = 0; i < threads; i++) prepare(fibres[i]);
  for (int64_t idle = 0, turn = 0, warp = 0;;) {
    if (schedule == 0) warp = turn++ % count;
    else if (schedule % 2 == 0 || idle) warp = random() % count;
    idle = step((int)warp, schedule ? random() % 32 : 0) ? 0 : idle + 1;
    if (idle < count) continue;
    int waiting = 0, done = 0, ready = 0;
    for (int i = 0; i < threads; i++) {
      waiting += fibres[i].state == State::kAtBlock;
      done += fibres[i].state == State::kDone;
      ready += fibres[i].state == State::kReady;
    }
    if (ready) continue;
    if (done == threads) return;
    if (waiting != threads) fail("deadlock: not every thread reaches the barrier or collective that others wait in");
    epoch++;
    release(State::kAtBlock, 0, threads);
  }
}

// Runs `grid` blocks, one after another.
inline void launch(int64_t grid, int block_threads, size_t bytes, std::function<void()> kernel) {
  body = std::move(kernel);
  threads = block_threads;
  if (threads % 32 || threads > 1024) fail("a block must be whole warps, at most 32");
  if ((int)fibres.size() < threads) fibres.resize(threads);
  // Shared memory ends where an unmapped page begins, so that running past its end is a crash.
  shared_bytes = (bytes + 127) / 128 * 128;
  const size_t mapped = (shared_bytes + kPage - 1) / kPage * kPage + kPage;
  uint8_t *map = (uint8_t *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED || mprotect(map + mapped - kPage, kPage, PROT_NONE)) fail("mmap failed");
  shared = map + mapped - kPage - shared_bytes;
  races.first_of_launch = epoch + 1;
  std::mt19937 random(schedule);
  for (block = 0; block < grid; block++) {
    // Every block starts from NaN, and from shared memory that nobody has touched.
    memset(shared, 0xff, shared_bytes);
    races.forget(shared, shared_bytes);
    run_block(random);
  }
  races.forget(shared, shared_bytes);
  munmap(map, mapped);
}

}  // namespace sim

DEVICE_FN int thread_index() { return sim::current; }
DEVICE_FN int64_t block_index() { return sim::block; }
DEVICE_FN uint8_t *shared_memory() { return sim::shared; }
DEVICE_FN void block_sync() {
  sim::Fibre &fibre = sim::fibres[sim::current];
  if (fibre.barriers++ == sim::dropped_barrier) {
    sim::faults++;
    return;
  }
  fibre.state = sim::State::kAtBlock;
  sim::yield();
}

// Copies, because kernels look at the same bytes as different types.
template <class T>
static inline T load(const T *p) {
  sim::races.read(p, sizeof(T), sim::now());
  if ((uintptr_t)p % sizeof(T)) sim::fail("unaligned load");
  T x;
  memcpy(&x, p, sizeof(T));
  return x;
}
template <class T>
static inline void store(T *p, T x) {
  sim::races.write(p, sizeof(T), sim::now());
  if ((uintptr_t)p % sizeof(T)) sim::fail("unaligned store");
  memcpy(p, &x, sizeof(T));
}

#include "simt_lanes.h"
