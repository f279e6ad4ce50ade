// coefficients.h - gates to chunk coefficients, by recurrences without any division (README.md, Coefficients).
//
// One block per sample, head and chunk; a thread follows one column s of
//   E[t, s] = eta_t E[t - 1, s]     D[t, s] = a_t D[t - 1, s] + m_t E[t, s]      write = D diag(theta)
// down the rows t. The chunk's first momentum is one more column, written before the chunk: E is then decay, D gamma.
#pragma once

#include "launch.h"
#include "record.h"

struct CoefficientArguments {
  nm_problem problem;
  Records records;
  int rows;  // tile height; at most kThreads - 2
};

inline int coefficient_shared(int rows) { return rows * 4 * 4; }

KERNEL void LAUNCH_BOUNDS(kThreads) coefficient_kernel(CoefficientArguments x) {
  const nm_problem &p = x.problem;
  const Head h = head_of(p, block_index() / x.records.count);
  const int64_t i = block_index() % x.records.count, first = (x.records.first + i) * p.chunk_size;
  const int rows = x.rows, real = (int)smaller(p.chunk_size, p.T - first), column = thread_index();
  uint8_t *record = x.records.record(h.index, i);
  const RecordLayout &at = x.records.at;

  float *keep = (float *)shared_memory(), *eta = keep + rows, *theta = eta + rows, *mask = theta + rows;
  for (int t = column; t < real; t += kThreads) {
    const int64_t token = h.sample * p.T + first + t, gate = token * p.H + h.head;
    const bool writes = !p.write_mask || load(p.write_mask + token);
    store(keep + t, writes ? 1.f - load((const float *)p.alpha + gate) : 1.f);
    store(theta + t, writes ? load((const float *)p.theta + gate) : 0.f);
    // Without momentum E is the identity, which is what eta = 0 makes of it.
    store(eta + t, !p.eta ? 0.f : writes ? load((const float *)p.eta + gate) : 1.f);
    store(mask + t, writes ? 1.f : 0.f);
  }
  block_sync();

  if (column < rows) {
    float *write = part<float>(record, at.write);
    const float weight = column < real ? load(theta + column) : 0.f;
    float e = 0.f, d = 0.f;
    for (int t = 0; t < rows; t++) {
      if (t >= column && t < real) {
        e = t == column ? 1.f : load(eta + t) * e;
        d = t == column ? load(mask + t) : load(keep + t) * d + load(mask + t) * e;
      }
      store(write + t * rows + column, t < real ? d * weight : 0.f);
    }
    store(part<float>(record, at.push) + column, e * weight);
  } else if (column == rows) {
    float decay = 1.f, gamma = 0.f, beta = 1.f;
    for (int t = 0; t < rows; t++) {
      if (t < real) {
        decay *= load(eta + t);
        gamma = load(keep + t) * gamma + load(mask + t) * decay;
        beta *= load(keep + t);
      }
      // Rows past the end repeat the last one: a query may follow the last key, even an empty chunk.
      store(part<float>(record, at.beta) + t, beta);
      store(part<float>(record, at.gamma) + t, gamma);
    }
    store(part<float>(record, at.ends), beta);
    store(part<float>(record, at.ends) + 1, gamma);
    store(part<float>(record, at.ends) + 2, decay);
  }
}
