// decode.h - one query after an unfinished chunk of keys: a forward pass over a single chunk that writes nothing.
//
// The state pass makes the chunk's record and leaves the state alone, the read pass answers one row. Time per token is
// bounded by the chunk, wherever in the stream it stands.
#pragma once

#include "memory_host.h"

// Without keys the chunk has no rows; one record is needed all the same. Forward's workspace for the same problem is
// exactly that.
inline void decode(Launcher &launch, const nm_problem &p, const nm_decode &out, void *workspace) {
  const int64_t heads = p.B * p.H;
  nm_problem chunk = p;
  chunk.chunk_size = p.T > 0 ? p.T : 1;
  chunk.keep_every = 0;
  with_config(chunk, [&](auto config) {
    using C = decltype(config);
    using StateSizes = StateShape<typename C::Op, C::kD, C::kRows>;
    using ReadSizes = ReadShape<typename C::Op, C::kD, C::kRows>;
    const Records records{records_of(chunk), (uint8_t *)workspace, 0, 1};
    const States start = states_of(p.weights, p.momentum, p);
    launch(coefficient_kernel, heads, coefficient_shared(C::kRows), CoefficientArguments{chunk, records, C::kRows});
    launch(state_kernel<typename C::Op, C::kD, C::kRows>, heads, StateSizes::kShared,
           StateArguments{chunk, records, start, start, nullptr, 0});
    launch(read_kernel<typename C::Op, C::kD, C::kRows>, heads, ReadSizes::kShared,
           ReadArguments{chunk, records, out.y, 1});
  });
}
