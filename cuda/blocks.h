// blocks.h - memory for scratch and boundary states on the CPU, kept for the next call when it is freed.
//
// A training step asks for the same large blocks again and again, and a system hands them out as fresh pages that it
// first has to clear: a tenth of the time of forward and backward. Of what is freed, up to kMostKept bytes stay here.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace neuralmem {

class Blocks {
 public:
  static constexpr int64_t kMostKept = int64_t(256) << 20;

  // At least `bytes` bytes, aligned to a page; NULL if there are not so many.
  void* take(int64_t bytes) {
    const int64_t whole = pages(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < free_.size(); i++) {
        if (free_[i].bytes != whole) continue;
        void* data = free_[i].data;
        free_.erase(free_.begin() + i);
        kept_ -= whole;
        return data;
      }
    }
    void* data = aligned_alloc(kPage, whole);
#ifdef __linux__
    if (data && whole >= kLargePage) madvise(data, whole, MADV_HUGEPAGE);
#endif
    return data;
  }

  // Gives back what `take(bytes)` returned. The blocks freed last are the ones that stay.
  void give(void* data, int64_t bytes) {
    std::vector<Block> dropped;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      free_.insert(free_.begin(), Block{data, pages(bytes)});
      kept_ += free_.front().bytes;
      while (kept_ > kMostKept) {
        kept_ -= free_.back().bytes;
        dropped.push_back(free_.back());
        free_.pop_back();
      }
    }
    for (const Block& block : dropped) free(block.data);
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };
  static constexpr int64_t kPage = 4096, kLargePage = int64_t(2) << 20;

  static int64_t pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

  std::mutex mutex_;
  std::vector<Block> free_;  // last freed first
  int64_t kept_ = 0;
};

}  // namespace neuralmem
