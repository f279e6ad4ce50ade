// dispatch.cpp - which of the compiled instruction sets to use. memory.cpp is compiled once per instruction set; a
// macro NM_HAS_<name> says that a table is there. This file is compiled without any option of an instruction set.
#include "../launchers.h"
#include "processor.h"

extern "C" {
#if defined(NM_HAS_amx)
extern const nm_cpu_kernels nm_cpu_amx;
#endif
#if defined(NM_HAS_avx512)
extern const nm_cpu_kernels nm_cpu_avx512;
#endif
#if defined(NM_HAS_avx2)
extern const nm_cpu_kernels nm_cpu_avx2;
#endif
#if defined(NM_HAS_portable)
extern const nm_cpu_kernels nm_cpu_portable;
#endif
}

namespace {

// Fastest first.
struct Tables {
  const nm_cpu_kernels* table[4];
  int count = 0;
  char names[64] = "";

  Tables() {
#if defined(NM_HAS_amx)
    add(nm_cpu_amx);
#endif
#if defined(NM_HAS_avx512)
    add(nm_cpu_avx512);
#endif
#if defined(NM_HAS_avx2)
    add(nm_cpu_avx2);
#endif
#if defined(NM_HAS_portable)
    add(nm_cpu_portable);
#endif
  }

 private:
  void add(const nm_cpu_kernels& kernels) {
    if (!nm::processor_has(kernels.name)) return;
    if (count) strcat(names, ",");
    strcat(names, kernels.name);
    table[count++] = &kernels;
  }
};

const Tables& tables() {
  static const Tables once;
  return once;
}

}  // namespace

const nm_cpu_kernels* nm_cpu_choose(const char* name) {
  for (int i = 0; i < tables().count; i++)
    if (name == nullptr || strcmp(tables().table[i]->name, name) == 0) return tables().table[i];
  return nullptr;
}

const char* nm_cpu_available(void) { return tables().names; }
