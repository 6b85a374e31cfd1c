// labels: quick
// Divergences of distillation against autograd through the plain formulas in float64.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/models/kernel_checks.h"
#include "trainer/objectives/distill_loss.h"

namespace cairn {
namespace {

using kernels::testing::expect_close;
using kernels::testing::message_of;
using kernels::testing::random_floats;
using kernels::testing::same_bits;

constexpr double kBetas[] = {0, 1, 0.5, 0.1, 0.97};

// sum over events of the divergence, rows apart. log_s, log_t [N, E]
at::Tensor plain(const at::Tensor& log_s, const at::Tensor& log_t, double beta) {
  if (beta == 0) return (log_t.exp() * (log_t - log_s)).sum(1);
  if (beta == 1) return (log_s.exp() * (log_s - log_t)).sum(1);
  const at::Tensor log_m = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log();
  return beta * (log_t.exp() * (log_t - log_m)).sum(1) + (1 - beta) * (log_s.exp() * (log_s - log_m)).sum(1);
}
at::Tensor wide(const at::Tensor& x) { return x.to(at::kDouble); }

struct Problem {
  at::Tensor student = random_floats({5, 11}, 1, 2), teacher = random_floats({5, 11}, 2, 2);
  at::Tensor mask = at::tensor(std::vector<int64_t>{1, 1, 0, 1, 1}).to(at::kBool);
};

void expect_rows(const DistillOutput& out, const at::Tensor& dlogits, const at::Tensor& row_loss,
                 const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& mask, double scale,
                 const std::string& what) {
  const at::Tensor kept = at::where(mask, rows, 0.0);
  const at::Tensor loss = scale * kept.sum();
  EXPECT_NEAR(out.loss, loss.item<double>(), 1e-9) << what;
  EXPECT_EQ(out.rows, mask.sum().item<int64_t>()) << what;
  expect_close(row_loss, kept, 1e-6, what + ", rows");
  const at::Tensor gradient = torch::autograd::grad({loss}, {logits})[0];
  const double size = gradient.abs().max().item<double>();
  expect_close(dlogits / size, gradient / size, 1e-6, what + ", dlogits");
}

TEST(Distill, EqualsThePlainFormula) {
  const Problem p;
  at::AutoGradMode on(true);
  for (const double beta : kBetas) {
    for (const double temperature : {1.0, 2.5}) {
      const at::Tensor logits = wide(p.student).requires_grad_();
      const at::Tensor log_s = (logits / temperature).log_softmax(1),
                       log_t = (wide(p.teacher) / temperature).log_softmax(1);
      const at::Tensor dlogits = at::full({5, 11}, NAN), row_loss = at::full({5}, NAN);
      const DistillOptions options{.beta = beta, .temperature = temperature};
      const DistillOutput out = distill_loss(p.student, p.teacher, p.mask, 0.25, options, dlogits, row_loss);
      expect_rows(out, dlogits, row_loss, logits, plain(log_s, log_t, beta), p.mask, 0.25,
                  "beta " + std::to_string(beta));
      EXPECT_NEAR(out.entropy, -at::where(p.mask, (log_s.exp() * log_s).sum(1), 0.0).sum().item<double>(), 1e-9);
      // In place of the logits, in a wider buffer, and without a gradient: the same.
      at::Tensor buffer = at::zeros({5, 16});
      at::Tensor view = buffer.narrow(1, 0, 11);
      view.copy_(p.student);
      EXPECT_EQ(distill_loss(view, p.teacher, p.mask, 0.25, options, view).loss, out.loss);
      EXPECT_TRUE(same_bits(view, dlogits));
      EXPECT_EQ(buffer.narrow(1, 11, 5).abs().sum().item<double>(), 0);
      EXPECT_EQ(distill_loss(p.student, p.teacher, p.mask, 0.25, options, {}).loss, out.loss);
    }
  }
}

TEST(Distill, TheFewTokensOfATeachersFile) {
  const Problem p;
  at::AutoGradMode on(true);
  const at::Tensor full = wide(p.teacher).log_softmax(1);
  for (const int64_t K : {1, 3, 11}) {
    const auto [values, indices] = full.topk(K, 1);
    const at::Tensor ids = indices.to(at::kInt).contiguous(), logprobs = values.to(at::kFloat).contiguous();
    for (const bool tail : {true, false}) {
      for (const double beta : kBetas) {
        const at::Tensor logits = wide(p.student).requires_grad_(), log_s = logits.log_softmax(1);
        at::Tensor s = log_s.gather(1, indices), t = wide(logprobs);
        if (!tail) {
          s = s.log_softmax(1), t = t.log_softmax(1);
        } else if (K < 11) {
          const at::Tensor named = at::zeros({5, 11}, at::kBool).scatter(1, indices, true);
          s = at::cat({s, at::where(named, 0.0, log_s.exp()).sum(1, true).log()}, 1);
          t = at::cat({t, (1 - t.exp().sum(1, true)).log()}, 1);
        }
        const std::string what = "K " + std::to_string(K) + (tail ? " tail" : "") + " beta " + std::to_string(beta);
        const at::Tensor dlogits = at::full({5, 11}, NAN), row_loss = at::full({5}, NAN);
        const DistillOptions options{.beta = beta, .loss_add_tail = tail};
        const DistillOutput out = distill_loss_topk(p.student, ids, logprobs, p.mask, 0.5, options, dlogits, row_loss);
        const at::Tensor rows = plain(s, t, beta);
        EXPECT_NEAR(out.loss, 0.5 * at::where(p.mask, rows, 0.0).sum().item<double>(), 1e-9) << what;
        const at::Tensor gradient = torch::autograd::grad({0.5 * at::where(p.mask, rows, 0.0).sum()}, {logits})[0];
        expect_close(dlogits, gradient, 1e-6, what);
        if (K == 11) {  // all tokens named: the divergence of the whole distributions
          EXPECT_NEAR(out.loss, distill_loss(p.student, p.teacher, p.mask, 0.5, {.beta = beta}, {}).loss, 1e-6) << what;
        }
        if (K == 1 && !tail) {
          EXPECT_NEAR(out.loss, 0, 1e-12) << "one token alone says nothing";
        }
      }
    }
  }
}

TEST(Distill, RowsOfFewerTokens) {
  const Problem p;
  const auto ids = at::tensor(std::vector<int32_t>{3, 7, -1}, at::kInt).view({1, 3});
  const auto logprobs = at::tensor({-0.5f, -1.5f, NAN}).view({1, 3});
  const at::Tensor student = p.student.narrow(0, 0, 1).contiguous();
  const double three = distill_loss_topk(student, ids, logprobs, {}, 1, {}, {}).loss;
  const double two =
      distill_loss_topk(student, ids.narrow(1, 0, 2).contiguous(), logprobs.narrow(1, 0, 2).contiguous(), {}, 1, {}, {})
          .loss;
  EXPECT_EQ(three, two);
}

// beta near an end gives that end's KL times the small weight, so the three formulas are one family.
TEST(Distill, TheEndsOfBeta) {
  const Problem p;
  const auto value = [&](double beta) {
    return distill_loss(p.student, p.teacher, p.mask, 1, {.beta = beta}, {}).loss;
  };
  EXPECT_NEAR(value(1e-5) / 1e-5 / value(0), 1, 1e-2);
  EXPECT_NEAR(value(1 - 1e-5) / 1e-5 / value(1), 1, 1e-2);
  for (const double beta : kBetas) {
    EXPECT_GT(value(beta), 0);
    const at::Tensor d = at::zeros({5, 11});
    EXPECT_NEAR(distill_loss(p.student, p.student, p.mask, 1, {.beta = beta}, d).loss, 0, 1e-12);
    EXPECT_LT(d.abs().max().item<double>(), 1e-7);
  }
}

TEST(Distill, ExtremeLogits) {
  at::Tensor student = at::tensor({0.0f, 300.0f, -300.0f, -INFINITY}).view({1, 4});
  const at::Tensor teacher = at::tensor({250.0f, 0.0f, -250.0f, -INFINITY}).view({1, 4});
  for (const double beta : kBetas) {
    const at::Tensor d = at::zeros({1, 4});
    const double loss = distill_loss(student, teacher, {}, 1, {.beta = beta}, d).loss;
    EXPECT_TRUE(std::isfinite(loss)) << beta;
    EXPECT_TRUE(at::isfinite(d).all().item<bool>()) << beta;
    EXPECT_NEAR(d.sum().item<double>(), 0, 1e-4) << beta;
    if (beta > 0 && beta < 1) {
      EXPECT_NEAR(loss, -(beta * std::log(beta) + (1 - beta) * std::log(1 - beta)), 1e-9);
    }
  }
}

TEST(Distill, BitsDoNotDependOnThreads) {
  const at::Tensor student = random_floats({37, 101}, 1, 2), teacher = random_floats({37, 101}, 2, 2);
  at::Tensor expected;
  double loss = 0;
  for (int threads : {1, 2, 3, 4}) {
    kernels::testing::Threads set(threads);
    const at::Tensor d = at::zeros({37, 101});
    const double got = distill_loss(student, teacher, {}, 1.0 / 37, {.beta = 0.5}, d).loss;
    if (threads == 1) expected = d, loss = got;
    EXPECT_TRUE(same_bits(d, expected)) << threads;
    EXPECT_EQ(got, loss) << threads;
  }
}

TEST(Distill, WhatIsRefused) {
  const Problem p;
  const auto ids = at::tensor(std::vector<int32_t>{3, 7}, at::kInt).view({1, 2});
  const auto logprobs = at::tensor({-0.5f, -1.5f}).view({1, 2});
  const at::Tensor student = p.student.narrow(0, 0, 1).contiguous();
  const auto topk = [&](const at::Tensor& i, const at::Tensor& l, DistillOptions o) {
    return message_of([&] { distill_loss_topk(student, i, l, {}, 1, o, {}); });
  };
  EXPECT_EQ(topk(ids, logprobs, {}), "");
  EXPECT_EQ(topk(ids, logprobs, {.temperature = 2}).find("temperature"), 0);
  EXPECT_NE(topk(ids + 5, logprobs, {}).find("names token 12"), std::string::npos);
  EXPECT_NE(topk(at::full_like(ids, 3), logprobs, {}).find("twice"), std::string::npos);
  EXPECT_NE(topk(at::full_like(ids, -1), logprobs, {}).find("no token"), std::string::npos);
  EXPECT_NE(topk(ids, at::zeros_like(logprobs), {}).find("add up to 2"), std::string::npos);
  EXPECT_EQ(message_of([] { check(DistillOptions{.beta = 1.5}); }).find("beta: 1.5"), 0);
  EXPECT_EQ(message_of([] { check(DistillOptions{.temperature = 0}); }).find("temperature: 0"), 0);
  EXPECT_NE(message_of([&] { distill_loss(p.student, student, {}, 1, {}, {}); }).find("teacher"), std::string::npos);
  EXPECT_NE(message_of([&] { distill_loss(p.student, p.teacher, at::ones({5}), 1, {}, {}); }).find("mask"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn
