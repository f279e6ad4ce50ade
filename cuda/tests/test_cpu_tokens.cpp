// test_cpu_tokens.cpp - float16 and bfloat16 tokens, read and written: every one of the 65,536 numbers, and the floats
// around every place where rounding turns. The expectation is made from the format's definition with ldexp and order.
// And weights of all shapes, turned on their way in and out, without a number read or written beside them.
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "../cpu/tokens.h"

using namespace nm::NM_ISA;

static volatile int all_numbers = 1 << 16;  // volatile: or g++ warns of what the other types' loops would do
static int failures = 0;

static void check(bool good, const char *what, unsigned bits) {
  if (good) return;
  if (failures++ < 20) printf("FAIL %s: 0x%04x\n", what, bits);
}

struct Format {
  int32_t dtype;
  int exponent_bits, fraction_bits;

  int infinity() const { return ((1 << exponent_bits) - 1) << fraction_bits; }
  bool is_nan(unsigned bits) const { return int(bits & 0x7fff) > infinity(); }
  double value(unsigned bits) const {  // of the number without its sign, were the exponent unbounded
    const int exponent = (bits & 0x7fff) >> fraction_bits, fraction = bits & ((1 << fraction_bits) - 1);
    const int smallest = 2 - (1 << (exponent_bits - 1)) - fraction_bits;
    return exponent ? ldexp((1 << fraction_bits) + fraction, smallest + exponent - 1) : ldexp(fraction, smallest);
  }
};

template <class T>
static std::vector<uint16_t> stored(const Format &format, const std::vector<T> &in) {
  std::vector<uint16_t> out(in.size() + 1);
  store_token(in.data(), format.dtype, 1, int(in.size()), out.data());
  return {out.begin() + 1, out.end()};
}

template <class T>
static void every_number(const Format &format) {
  const int count = all_numbers;
  std::vector<uint16_t> bits(count);
  for (int i = 0; i < count; i++) bits[i] = uint16_t(i);
  std::vector<T> wide(count - 1);
  load_token(bits.data(), format.dtype, 1, count - 1, wide.data());
  const std::vector<uint16_t> back = stored(format, wide);
  for (int i = 1; i < count; i++) {
    const double sign = i & 0x8000 ? -1 : 1, x = wide[i - 1];
    if (format.is_nan(i)) {
      check(x != x && format.is_nan(back[i - 1]), "NaN", i);
      continue;
    }
    const double expected = (i & 0x7fff) == format.infinity() ? INFINITY : format.value(i);
    check(x == sign * expected && !signbit(x) == (sign > 0), "value", i);
    check(back[i - 1] == i, "there and back", i);
  }
}

// Between two neighbours: just below the middle, the middle, which goes to the even one, and just above.
static void every_middle(const Format &format) {
  std::vector<float> in;
  std::vector<uint16_t> expected;
  for (int low = 0; low < format.infinity(); low++) {
    const float middle = float((format.value(low) + format.value(low + 1)) / 2);
    for (int sign : {0, 0x8000}) {
      const float turn = sign ? -middle : middle;
      in.insert(in.end(), {nextafterf(turn, 0.f), turn, nextafterf(turn, 2 * turn)});
      for (int to : {low, low + low % 2, low + 1}) expected.push_back(uint16_t(to | sign));
    }
  }
  for (float x : {3.4e38f, INFINITY, 1e-30f, 1e-45f}) {
    const bool large = x > 1;
    if (format.dtype == NM_FLOAT16) in.push_back(x), expected.push_back(large ? uint16_t(format.infinity()) : 0);
  }
  const std::vector<uint16_t> got = stored(format, in);
  for (size_t i = 0; i < got.size(); i++) check(got[i] == expected[i], "rounded", expected[i]);
}

// Numbers behind the last of which nothing may be touched: there a page begins that cannot be.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t numbers) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), whole = (numbers * sizeof(T) + page - 1) / page * page;
    bytes_ = whole + page;
    memory_ = static_cast<char *>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_ + whole, page, PROT_NONE);
    data = reinterpret_cast<T *>(memory_ + whole - numbers * sizeof(T));
  }
  Guarded(const Guarded &) = delete;
  ~Guarded() { munmap(memory_, bytes_); }

  T *data;

 private:
  char *memory_;
  size_t bytes_;
};

// The last of two matrices, in and out.
template <class T>
static void weights_of(int into, int out) {
  const size_t numbers = size_t(into) * out;
  const int stride = stride_of<T>(out);
  std::vector<T> inside(size_t(into) * stride + kLanes<T>, T(-1));
  const Guarded<T> from(2 * numbers), to(2 * numbers);
  for (size_t i = 0; i < 2 * numbers; i++) from.data[i] = T(i + 1), to.data[i] = T(-1);
  const Buffer<T> W{inside.data(), stride};
  const unsigned which = unsigned(into) << 8 | unsigned(out);
  load_weights(from.data, 1, into, out, W);
  for (int i = 0; i < into; i++)
    for (int o = 0; o < out; o++) check(W[i][o] == from.data[numbers + size_t(o) * into + i], "weights in", which);
  store_weights(W, 1, into, out, to.data);
  for (size_t i = 0; i < 2 * numbers; i++)
    check(to.data[i] == (i < numbers ? T(-1) : from.data[i]), "weights out", which);
  load_weights<T>(nullptr, 1, into, out, W);
  for (int i = 0; i < into; i++)
    for (int o = 0; o < out; o++) check(W[i][o] == 0, "no weights", which);
}

int main() {
  for (int into : {1, 2, 3, 4, 7, 15, 16, 17, 20, 31, 64, 65})
    for (int out : {1, 3, 8, 16, 19, 33, 64, 70}) {
      weights_of<float>(into, out);
      weights_of<double>(into, out);
    }
  const Format half{NM_FLOAT16, 5, 10}, brain{NM_BFLOAT16, 8, 7};
  for (const Format &format : {half, brain}) {
    every_number<float>(format);
    every_number<double>(format);
    every_middle(format);
  }
#if defined(__x86_64__)
  // As kernels run: floats that are denormal are zero. No number of float16 is such a float.
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
  every_number<float>(half);
  every_middle(half);
#endif
  puts(failures ? "FAIL" : "PASS");
  return failures ? 1 : 0;
}
