// labels: quick
// Attention over pages: against its plain twin and against training, and what its bits may depend on.
#include "models/kernels/paged_attention.h"

#include <cmath>
#include <string>
#include <vector>

#include "models/kernels/ref/paged_attention.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using testing::expect_close;
using testing::OnlyTarget;
using testing::random_floats;
using testing::same_bits;
using testing::Threads;

struct Case {
  std::vector<int64_t> lengths;  // 0: no sequence
  int64_t heads, kv_heads, dim;
  int64_t window = 0;
  double softcap = 0;
  bool sinks = false;

  std::string name() const {
    return "B" + std::to_string(lengths.size()) + " H" + std::to_string(heads) + " K" + std::to_string(kv_heads) +
           " D" + std::to_string(dim) + " window " + std::to_string(window) + " softcap " + std::to_string(softcap) +
           (sinks ? " sinks" : "");
  }
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {.lengths = {1}, .heads = 1, .kv_heads = 1, .dim = 8},
      {.lengths = {5, 0, 64, 65, 1, 200}, .heads = 9, .kv_heads = 3, .dim = 64},
      {.lengths = {130, 17, 16, 15}, .heads = 4, .kv_heads = 4, .dim = 32},
      {.lengths = {33, 259}, .heads = 8, .kv_heads = 4, .dim = 20},
      {.lengths = {31, 96}, .heads = 5, .kv_heads = 1, .dim = 80},
      {.lengths = {70, 3}, .heads = 14, .kv_heads = 2, .dim = 128},
      {.lengths = {129}, .heads = 80, .kv_heads = 1, .dim = 24},  // more query heads than one task takes
      {.lengths = {97, 128}, .heads = 2, .kv_heads = 1, .dim = 256},
      {.lengths = {300, 40, 64, 71}, .heads = 4, .kv_heads = 2, .dim = 32, .window = 70},
      {.lengths = {300, 1}, .heads = 4, .kv_heads = 2, .dim = 32, .window = 1},
      {.lengths = {190, 63}, .heads = 6, .kv_heads = 2, .dim = 32, .softcap = 5},
      {.lengths = {200, 2, 66}, .heads = 6, .kv_heads = 2, .dim = 40, .window = 66, .sinks = true},
      {.lengths = {150, 90}, .heads = 4, .kv_heads = 2, .dim = 16, .window = 100, .softcap = 3, .sinks = true},
  };
  return all;
}

AttentionOptions options_of(const Case& c) {
  AttentionOptions options;
  options.scale = 1.3 / std::sqrt(static_cast<double>(c.dim));
  options.window = c.window, options.softcap = c.softcap;
  if (c.sinks) options.sinks = random_floats({c.heads}, 3, 3);
  return options;
}

// Every sequence's rows, slices of one fused product as the layer gives them, and its newest query.
struct Rows {
  std::vector<at::Tensor> q, k, v;  // [length, H, D], [length, K, D]
};
Rows rows_of(const Case& c) {
  Rows rows;
  for (size_t b = 0; b < c.lengths.size(); ++b) {
    const auto x = random_floats({c.lengths[b], c.heads + 2 * c.kv_heads, c.dim}, 100 + b);
    rows.q.push_back(x.narrow(1, 0, c.heads));
    rows.k.push_back(x.narrow(1, c.heads, c.kv_heads));
    rows.v.push_back(x.narrow(1, c.heads + c.kv_heads, c.kv_heads));
  }
  return rows;
}

// Pages in a shuffled order, filled with NaN where nothing is written: nobody may read that.
struct Cache {
  KeyValuePages pages;
  at::Tensor table, lengths;
  std::vector<at::Tensor> slots;  // of each sequence

  Cache(const Case& c, int64_t page_size, const at::TensorOptions& type = at::kFloat) {
    const int64_t B = static_cast<int64_t>(c.lengths.size());
    int64_t count = 0, most = 0;
    for (const int64_t length : c.lengths) {
      const int64_t n = (length + page_size - 1) / page_size;
      count += n, most = std::max(most, n);
    }
    pages = make_pages(count + 1, c.kv_heads, c.dim, page_size, type);
    pages.keys.fill_(NAN), pages.values.fill_(NAN);
    table = at::full({B, most + 1}, -1, at::kInt), lengths = at::empty({B}, at::kInt);
    int64_t next = count;
    for (int64_t b = 0; b < B; ++b) {
      lengths[b] = c.lengths[b];
      const auto slot = at::empty({c.lengths[b]}, at::kLong);
      for (int64_t i = 0; i < c.lengths[b]; ++i) {
        if (i % page_size == 0) table[b][i / page_size] = next--;
        slot[i] = table[b][i / page_size].item<int64_t>() * page_size + i % page_size;
      }
      slots.push_back(slot);
    }
  }
};

at::Tensor newest(const Rows& rows, const Case& c) {
  std::vector<at::Tensor> q;
  for (size_t b = 0; b < c.lengths.size(); ++b)
    q.push_back(c.lengths[b] > 0 ? rows.q[b].narrow(0, c.lengths[b] - 1, 1) : at::ones({1, c.heads, c.dim}));
  return at::cat(q);
}

at::Tensor run(const Case& c, int64_t page_size) {
  const Rows rows = rows_of(c);
  const Cache cache(c, page_size);
  for (size_t b = 0; b < c.lengths.size(); ++b) paged_store(cache.pages, rows.k[b], rows.v[b], cache.slots[b]);
  return paged_attention(newest(rows, c), cache.pages, cache.table, cache.lengths, options_of(c));
}

TEST(PagedAttention, EqualsTheTwin) {
  for (const Case& c : cases()) {
    for (const int64_t page_size : {16, 64, 128}) {
      const Rows rows = rows_of(c);
      const Cache exact(c, page_size, at::kDouble);
      for (size_t b = 0; b < c.lengths.size(); ++b)
        ref::paged_store(exact.pages, rows.k[b].to(at::kDouble), rows.v[b].to(at::kDouble), exact.slots[b]);
      const auto expected =
          ref::paged_attention(newest(rows, c).to(at::kDouble), exact.pages, exact.table, exact.lengths, options_of(c));
      expect_close(run(c, page_size), expected, 1e-6, c.name() + ", pages of " + std::to_string(page_size));
    }
  }
}

TEST(PagedAttention, StoresWhatTheTwinStores) {
  const Case c{.lengths = {37, 130}, .heads = 2, .kv_heads = 2, .dim = 20};
  for (const int64_t page_size : {16, 32, 64, 192}) {
    const Rows rows = rows_of(c);
    const Cache fast(c, page_size), plain(c, page_size);
    for (size_t b = 0; b < 2; ++b) {
      at::Tensor slots = fast.slots[b].clone();
      slots[3] = -1;
      paged_store(fast.pages, rows.k[b], rows.v[b], slots);
      ref::paged_store(plain.pages, rows.k[b], rows.v[b], slots);
    }
    EXPECT_TRUE(same_bits(fast.pages.keys, plain.pages.keys)) << page_size;
    EXPECT_TRUE(same_bits(fast.pages.values, plain.pages.values)) << page_size;
    EXPECT_TRUE(fast.pages.keys.isnan().any().item<bool>());  // what was not written
  }
}

// A row has the bits that attention_forward gives it in training, with any page size, number of threads, neighbours.
TEST(PagedAttention, HasTheBitsOfTraining) {
  for (const Case& c : cases()) {
    const Rows rows = rows_of(c);
    std::vector<at::Tensor> trained;
    for (size_t b = 0; b < c.lengths.size(); ++b) {
      trained.push_back(
          c.lengths[b] > 0
              ? attention_forward(rows.q[b], rows.k[b], rows.v[b], options_of(c)).out.narrow(0, c.lengths[b] - 1, 1)
              : at::zeros({1, c.heads * c.dim}));
    }
    const auto expected = at::cat(trained);
    for (const int64_t page_size : {16, 32, 64, 192}) {
      for (const int threads : {1, 2, 3}) {
        const Threads set(threads);
        EXPECT_TRUE(same_bits(run(c, page_size), expected))
            << c.name() << ", pages of " << page_size << ", " << threads << " threads";
      }
    }
    Case alone = c;
    for (size_t b = 0; b + 1 < c.lengths.size(); ++b) alone.lengths[b] = 0;
    const int64_t last = static_cast<int64_t>(c.lengths.size()) - 1;
    EXPECT_TRUE(same_bits(run(alone, 64)[last], expected[last])) << c.name();
  }
}

TEST(PagedAttention, HasTheSameBitsWithAvx2AndAvx512) {
  if ((hwy::SupportedTargets() & HWY_AVX3) == 0 || (hwy::SupportedTargets() & HWY_AVX2) == 0) GTEST_SKIP();
  for (const Case& c : cases()) {
    at::Tensor wide, narrow;
    {
      const OnlyTarget only(HWY_AVX3);
      wide = run(c, 32);
    }
    {
      const OnlyTarget only(HWY_AVX2);
      narrow = run(c, 32);
    }
    EXPECT_TRUE(same_bits(wide, narrow)) << c.name();
  }
}

TEST(PagedAttention, RefusesWhatDoesNotFit) {
  EXPECT_THROW(make_pages(1, 1, 8, 0, at::kFloat), std::invalid_argument);
  EXPECT_THROW(make_pages(1, 1, 8, 48, at::kFloat), std::invalid_argument);
  EXPECT_THROW(make_pages(1, 1, 8, 100, at::kFloat), std::invalid_argument);
  const Case c{.lengths = {20}, .heads = 4, .kv_heads = 2, .dim = 8};
  const Rows rows = rows_of(c);
  const Cache cache(c, 16);
  const auto q = newest(rows, c);
  const auto attend = [&](const at::Tensor& queries, const at::Tensor& table, const at::Tensor& lengths) {
    return paged_attention(queries, cache.pages, table, lengths, options_of(c));
  };
  const auto count = [](int64_t n) { return at::full({1}, n, at::kInt); };
  EXPECT_THROW(attend(q, cache.table, count(-1)), std::invalid_argument);
  EXPECT_THROW(attend(q, cache.table, count(33)), std::invalid_argument);      // needs a page that the table lacks
  EXPECT_THROW(attend(q, cache.table, count(64)), std::invalid_argument);      // longer than the table
  EXPECT_THROW(attend(q, cache.table + 7, count(20)), std::invalid_argument);  // no such page
  EXPECT_THROW(attend(q.narrow(1, 0, 3), cache.table, count(20)), std::invalid_argument);  // 2 does not divide 3
  EXPECT_THROW(attend(at::ones({1, 4, 6}), cache.table, count(20)), std::invalid_argument);
  EXPECT_THROW(attend(q.to(at::kDouble), cache.table, count(20)), std::invalid_argument);
  EXPECT_THROW(attend(at::cat({q, q}), cache.table, count(20)), std::invalid_argument);
  EXPECT_THROW(paged_store(cache.pages, rows.k[0], rows.v[0], cache.slots[0] + 100), std::invalid_argument);
  EXPECT_THROW(paged_store(cache.pages, rows.k[0], rows.v[0], cache.slots[0].narrow(0, 1, 19)), std::invalid_argument);
}

}  // namespace
}  // namespace cairn::kernels
