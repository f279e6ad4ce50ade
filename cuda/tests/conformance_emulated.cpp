// conformance_emulated.cpp - the emulator's half of conformance.cu, compiled by g++.
#include <type_traits>

#include "conformance.h"

void run_emulated(int number, const uint32_t *in, uint32_t *out) {
  const conformance::Case &c = conformance::kCases[number];
  sim::launch(1, kThreads, c.shared, [&] { c.kernel(conformance::Arguments{in, out}); });
}
