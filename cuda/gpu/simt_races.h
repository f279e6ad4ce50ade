// simt_races.h - finds data races in emulated kernels, whatever the schedule was.
//
// Every load and store notes, for each two bytes, who touched them last and between which barriers. Two accesses of
// which one writes are a race if they come from different threads with no block_sync (or, inside one warp, no
// warp_sync) in between, or from different blocks of one launch. Collectives such as mma do not order memory, so they
// do not count, although the emulator itself happens to synchronise there.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <unordered_map>

namespace sim {

[[noreturn]] void fail(const char *what);

// When and by whom. Epochs count block_syncs over all blocks and launches, so they also tell blocks and launches apart.
struct Access {
  uint32_t epoch = 0;
  uint32_t warp_epoch = 0;  // warp_syncs of the thread's warp, likewise
  int32_t thread = 0;       // readers only: -1 - w for several threads of warp w, kManyWarps for several warps
};

class Races {
 public:
  uint32_t first_of_launch = 1, first_of_block = 1;  // epochs

  void read(const void *p, size_t bytes, const Access &now) {
    each(p, bytes, [&](Record &r) {
      if (conflict(r.writer, now)) fail("race: a value is read that another thread wrote, no barrier in between");
      if (in_launch(r.reader) && !in_block(r.reader)) r.read_by_blocks = r.reader.epoch;
      const bool together = in_block(r.reader) && conflict(r.reader, now);
      const bool one_warp = together && r.reader.thread != kManyWarps && warp_of(r.reader) == now.thread / 32;
      if (together) r.reader.thread = one_warp ? -1 - now.thread / 32 : kManyWarps;
      else if (r.reader.epoch != now.epoch || r.reader.thread != kManyWarps) r.reader = now;
    });
  }

  void write(const void *p, size_t bytes, const Access &now) {
    each(p, bytes, [&](Record &r) {
      if (conflict(r.writer, now)) fail("race: two threads write one value, no barrier in between");
      if (conflict(r.reader, now) || r.read_by_blocks >= first_of_launch)
        fail("race: a value is overwritten that another thread reads, no barrier in between");
      r.writer = now;
    });
  }

  // For memory that is used anew. Without this an address that malloc hands out again would keep its history; only
  // within one launch could that matter, so freed buffers need no call.
  void forget(const void *p, size_t bytes) {
    each(p, bytes, [](Record &r) { r = Record(); });
  }

 private:
  static constexpr int32_t kManyWarps = INT32_MIN;
  struct Record {
    Access writer, reader;
    uint32_t read_by_blocks = 0;  // an epoch of the launch in which several blocks read this
  };
  struct Page {
    Record records[1024];
  };

  bool in_launch(const Access &then) const { return then.epoch >= first_of_launch; }
  bool in_block(const Access &then) const { return then.epoch >= first_of_block; }
  static int warp_of(const Access &then) { return then.thread < 0 ? -1 - then.thread : then.thread / 32; }

  // Whether an earlier access is unordered with one made now.
  bool conflict(const Access &then, const Access &now) const {
    if (!in_launch(then)) return false;
    if (!in_block(then)) return true;
    if (then.epoch != now.epoch || then.thread == now.thread) return false;
    return then.thread == kManyWarps || warp_of(then) != now.thread / 32 || then.warp_epoch == now.warp_epoch;
  }

  template <class Visit>
  void each(const void *p, size_t bytes, Visit visit) {
    const uintptr_t first = (uintptr_t)p / 2, last = ((uintptr_t)p + bytes - 1) / 2;
    for (uintptr_t unit = first; unit <= last; unit++) {
      if (!page_ || unit / 1024 != page_number_) {
        page_number_ = unit / 1024;
        auto &page = pages_[page_number_];
        if (!page) page = std::make_unique<Page>();
        page_ = page.get();
      }
      visit(page_->records[unit % 1024]);
    }
  }

  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  Page *page_ = nullptr;
  uintptr_t page_number_ = 0;
};

inline Races races;

}  // namespace sim
