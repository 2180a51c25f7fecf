#include <vector>

#include "machine.h"
#include "operands.h"
#include "tensor_core.h"

namespace ptx {
namespace {

// wgmma. in: d, then a's registers, descriptors and the product's form. out: d.

constexpr int kA = 128, kDescriptors = 132, kForm = 136, kCode = 140;

uint64_t join(const uint32_t* words) { return static_cast<uint64_t>(words[1]) << 32 | words[0]; }

SharedMatrix shared_matrix(const Thread& thread, int line, uint64_t descriptor, Element element,
                           bool transposed) {
  constexpr uint32_t kSwizzles[] = {0, 128, 64, 32};
  return {thread, line, descriptor, kSwizzles[descriptor >> 62], element, transposed};
}

constexpr int kMostSums = 128;
constexpr uint32_t kNan = 0x7fbadbad;

/// One instruction of a warp that has begun.
struct Product {
  GroupProduct form;
  int line, result;
  unsigned group;
  bool a_in_registers;
  uint64_t a_descriptor, b_descriptor;
  uint32_t a_registers[kWarp][4];
};

/// d of the instructions that add to the same registers.
struct Result {
  uint32_t sums[kWarp][kMostSums];
  int num_open = 0;         ///< instructions that have not landed
  uint32_t owed_lanes = 0;  ///< those that have not taken it since
};

/// What a warp has under way. Nothing here is allocated by fibers.
struct Pipeline {
  static constexpr unsigned kMost = 64;
  Product products[kMost];
  unsigned begin = 0, end = 0, num_groups = 0;
  Result results[kMostResults];
};
std::vector<Pipeline> pipelines;

Pipeline& pipeline_of(const Thread& thread) { return pipelines[thread.tid / kWarp]; }

/// sums [32, n / 2] as registers hold them.
void multiply(const float (*a)[kMostDepth], const float (*b)[kMostDepth],
              const GroupProduct& product, uint32_t (*sums)[kMostSums]) {
  const float scale = product.scale_a * product.scale_b;
  const int depth = 32 / element_bytes(product.element);
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < product.columns / 2; ++i) {
      const uint32_t row = lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[column][k];
      uint32_t& to = sums[lane][i];
      to = f32::encode((product.accumulates ? f32::decode(to) : 0.0f) + scale * sum);
    }
  }
}

void compute(const Thread& thread, const Product& product, uint32_t (*sums)[kMostSums]) {
  const GroupProduct& form = product.form;
  float a[16][kMostDepth], b[256][kMostDepth];
  if (product.a_in_registers) {
    for (uint32_t lane = 0; lane < kWarp; ++lane) {
      place_fragment(form.element, product.a_registers[lane], 4, 16, lane, a);
    }
  } else {
    shared_matrix(thread, product.line, product.a_descriptor, form.element, form.transposed_a)
        .read(static_cast<int>(thread.tid / kWarp % 4 * 16), 16, a);
  }
  shared_matrix(thread, product.line, product.b_descriptor, form.element, form.transposed_b)
      .read(0, form.columns, b);
  multiply(a, b, form, sums);
}

/// The instruction that all lanes of a warp have come with.
Product read_product(const Thread& thread, int line, const WarpWords& words) {
  const uint32_t* const first = words.in[0];
  for (const auto& in : words.in) {
    for (int i = kDescriptors; i <= kCode; ++i) {
      if (in[i] != first[i]) fault(thread, line, "wgmma differs among the lanes of a warp");
    }
  }
  const uint32_t* const form = first + kForm;
  Product product = {{static_cast<Element>(form[0]), static_cast<int>(form[1]), form[2] != 0,
                      form[3] & 1 ? -1.0f : 1.0f, form[3] & 2 ? -1.0f : 1.0f, (form[3] & 4) != 0,
                      (form[3] & 8) != 0},
                     line,
                     static_cast<int>(first[kCode]),
                     0,
                     (form[3] & 16) != 0,
                     join(first + kDescriptors),
                     join(first + kDescriptors + 2),
                     {}};
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) product.a_registers[lane][i] = words.in[lane][kA + i];
  }
  return product;
}

void compute_words(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  const Product product = read_product(thread, line, words);
  static uint32_t sums[kWarp][kMostSums];
  const int count = product.form.columns / 2;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < count; ++i) sums[lane][i] = words.in[lane][i];
  }
  compute(thread, product, sums);
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < count; ++i) words.out[lane][i] = sums[lane][i];
  }
}

void begin_words(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  Pipeline& pipeline = pipeline_of(thread);
  if (pipeline.end - pipeline.begin == Pipeline::kMost) {
    fault(thread, line, "too many wgmma that nobody waits for");
  }
  Product& product = pipeline.products[pipeline.end++ % Pipeline::kMost];
  product = read_product(thread, line, words);
  product.group = pipeline.num_groups;
  Result& result = pipeline.results[product.result];
  const int count = product.form.columns / 2;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < count; ++i) {
      if (result.num_open == 0) result.sums[lane][i] = words.in[lane][i];
      words.out[lane][i] = kNan;
    }
  }
  ++result.num_open;
  result.owed_lanes = 0;
}

void commit_words(const Thread& thread, int line, uint32_t mask, WarpWords&) {
  require_all_lanes(thread, line, mask);
  ++pipeline_of(thread).num_groups;
}

void wait_words(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  Pipeline& pipeline = pipeline_of(thread);
  const uint32_t groups_left = words.in[thread.lane][0];
  while (pipeline.begin != pipeline.end) {
    const Product& product = pipeline.products[pipeline.begin % Pipeline::kMost];
    if (product.group + groups_left >= pipeline.num_groups) return;
    Result& result = pipeline.results[product.result];
    compute(thread, product, result.sums);
    if (--result.num_open == 0) result.owed_lanes = kAllLanes;
    ++pipeline.begin;
  }
}

}  // namespace

void forget_products(unsigned threads) {
  if (!machine.is_late) return;
  const size_t warps = (threads + kWarp - 1) / kWarp;
  if (pipelines.size() < warps) pipelines.resize(warps);
  for (Pipeline& pipeline : pipelines) {
    pipeline.begin = pipeline.end = pipeline.num_groups = 0;
    for (Result& result : pipeline.results) result.num_open = result.owed_lanes = 0;
  }
}

void wgmma(Thread& thread, int line, const GroupProduct& product, int result,
           const uint32_t* a_registers, uint64_t a_descriptor, uint64_t b_descriptor, uint32_t* d) {
  uint32_t in[WarpWords::kMost] = {};
  for (int i = 0; i < product.columns / 2; ++i) in[i] = d[i];
  if (a_registers != nullptr) {
    for (int i = 0; i < 4; ++i) in[kA + i] = a_registers[i];
  }
  in[kDescriptors] = static_cast<uint32_t>(a_descriptor);
  in[kDescriptors + 1] = static_cast<uint32_t>(a_descriptor >> 32);
  in[kDescriptors + 2] = static_cast<uint32_t>(b_descriptor);
  in[kDescriptors + 3] = static_cast<uint32_t>(b_descriptor >> 32);
  in[kForm] = static_cast<uint32_t>(product.element);
  in[kForm + 1] = static_cast<uint32_t>(product.columns);
  in[kForm + 2] = product.accumulates;
  in[kForm + 3] = (product.scale_a < 0) | (product.scale_b < 0) << 1 | product.transposed_a << 2 |
                  product.transposed_b << 3 | (a_registers != nullptr) << 4;
  in[kCode] = static_cast<uint32_t>(result);
  const bool is_late = machine.is_late && result >= 0;
  together(thread, line, kAllLanes, is_late ? begin_words : compute_words, in, WarpWords::kMost, d,
           product.columns / 2);
}

void wgmma_commit(Thread& thread, int line) {
  if (machine.is_late) together(thread, line, kAllLanes, commit_words, nullptr, 0, nullptr, 0);
}

void wgmma_wait(Thread& thread, int line, uint32_t groups_left) {
  if (machine.is_late) together(thread, line, kAllLanes, wait_words, &groups_left, 1, nullptr, 0);
}

bool wgmma_take(Thread& thread, int result, int num_registers, uint32_t* d) {
  if (!machine.is_late) return false;
  Result& come = pipeline_of(thread).results[result];
  if (!(come.owed_lanes >> thread.lane & 1)) return false;
  come.owed_lanes &= ~(1u << thread.lane);
  for (int i = 0; i < num_registers; ++i) d[i] = come.sums[thread.lane][i];
  return true;
}

}  // namespace ptx
