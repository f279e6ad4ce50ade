// record.h - what the state pass leaves behind for each chunk, and where in the workspace it lies.
//
// A record belongs to one sample, head and chunk. Operands (bf16 or fp16): the weights and the momentum that the chunk
// starts from, what its keys made of them, and the chunk's coefficients in fp32:
//   w1, s1 [hidden, D]   w2, s2 [D, hidden]   a, dz [rows, hidden]   e [rows, D]
//   beta, gamma, push [rows], ends [4] (beta, gamma, decay at the last token), write [rows, rows]
// a = act(K W1^T), e and dz the gradients of the loss with respect to what layer 2 and 1 put out. `rows` is the tile
// height; rows beyond the chunk's tokens are zero. s1, s2 exist with momentum only.
#pragma once

#include "../launchers.h"
#include "simt.h"

struct RecordLayout {
  int64_t w1, w2, s1, s2, a, dz, e, beta, gamma, push, ends, write, bytes;  // offsets in bytes, multiples of 16
};

inline RecordLayout record_layout(int64_t width, int64_t hidden, int64_t rows, bool momentum) {
  RecordLayout at{};
  int64_t end = 0;
  auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 15) / 16 * 16;
    return begin;
  };
  const int64_t matrix = width * hidden * 2;
  at.w1 = take(matrix), at.w2 = take(matrix);
  at.s1 = take(momentum ? matrix : 0), at.s2 = take(momentum ? matrix : 0);
  at.a = take(rows * hidden * 2), at.dz = take(rows * hidden * 2), at.e = take(rows * width * 2);
  at.beta = take(rows * 4), at.gamma = take(rows * 4), at.push = take(rows * 4), at.ends = take(16);
  at.write = take(rows * rows * 4);
  at.bytes = (end + 127) / 128 * 128;
  return at;
}

// The records of `count` neighbouring chunks of every sample and head, [B * H, count].
struct Records {
  RecordLayout at;
  uint8_t *base;
  int64_t first, count;  // chunks

  METHOD uint8_t *record(int64_t head, int64_t i) const { return base + (head * count + i) * at.bytes; }
};

template <class T>
DEVICE_FN T *part(uint8_t *record, int64_t offset) {
  return (T *)(record + offset);
}

// Where things of one sample and head lie in the call's tensors.
struct Head {
  int64_t index, sample, head;  // index = sample * H + head
};

DEVICE_FN Head head_of(const nm_problem &p, int64_t index) { return {index, index / p.H, index % p.H}; }

// Where token t lies in a [B, T, H, D] tensor; the next token is H * D elements further.
DEVICE_FN int64_t token_offset(const nm_problem &p, Head h, int64_t t) {
  return ((h.sample * p.T + t) * p.H + h.head) * p.D;
}
template <class Op>
DEVICE_FN const Op *token(const nm_problem &p, const void *tensor, Head h, int64_t t) {
  return (const Op *)tensor + token_offset(p, h, t);
}

DEVICE_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
