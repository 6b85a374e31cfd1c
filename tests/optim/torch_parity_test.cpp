// AdamW, SGD and Muon against torch.optim over 1,000 steps, gradients taken from torch's own trajectory, clipping and
// decay groups included.
#include <gtest/gtest.h>

#include <unistd.h>
#include <cstdlib>

#include <filesystem>
#include <fstream>

#include "optim/norm.h"
#include "optim/optimizer.h"

namespace cairn::optim {
namespace {

const std::vector<std::vector<int64_t>> kShapes = {{24, 16}, {16, 40}, {13}, {37, 8}};
const std::vector<int> kMarks = {1, 10, 100, 1000};

std::vector<double> read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<double> values(std::filesystem::file_size(path) / sizeof(double));
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(double)));
  return values;
}

class TorchParity : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::filesystem::path source = CAIRN_SOURCE_DIR, python = source / ".venv/bin/python";
    if (!std::filesystem::exists(python)) return;
    folder_ = std::filesystem::temp_directory_path() / fmt::format("cairn-optim-{}", getpid());
    std::filesystem::create_directories(folder_);
    const auto command = fmt::format("'{}' '{}' '{}'", python.string(),
                                     (source / "tests/optim/torch_trajectory.py").string(), folder_.string());
    ran_ = std::system(command.c_str()) == 0;
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder_); }

  // Follows case `name` with `options`; the largest absolute difference of parameters (of size about 1) over the marks.
  double follow(const std::string& name, const OptimizerOptions& options, double max_norm = 0) {
    if (folder_.empty()) {
      skipped_ = true;
      return 0;
    }
    EXPECT_TRUE(ran_) << "torch_trajectory.py failed";
    if (!ran_) return 1e9;
    const auto start = read(folder_ / (name + ".start")), grads = read(folder_ / (name + ".grads")),
               lrs = read(folder_ / (name + ".lrs")), expected = read(folder_ / (name + ".params"));
    const auto n = static_cast<int64_t>(start.size());
    at::Tensor flat = at::tensor(start, at::kDouble).to(at::kFloat), grad = at::zeros({n});
    std::vector<Parameter> parameters;
    int64_t offset = 0;
    for (size_t i = 0; i < kShapes.size(); ++i) {
      const int64_t size = c10::multiply_integers(kShapes[i]);
      const bool embedding = options.name == "muon" && i == 3;
      parameters.push_back({fmt::format("p{}", i), flat.narrow(0, offset, size).view(kShapes[i]),
                            grad.narrow(0, offset, size).view(kShapes[i]),
                            embedding                ? Role::embedding
                            : kShapes[i].size() == 2 ? Role::matrix
                                                     : Role::norm});
      offset += size;
    }
    auto optimizer = make_optimizer(options, parameters);
    double worst = 0;
    size_t mark = 0;
    for (int64_t step = 1; step <= static_cast<int64_t>(lrs.size()); ++step) {
      grad.copy_(at::from_blob(const_cast<double*>(grads.data()) + (step - 1) * n, {n}, at::kDouble));
      optimizer->step(lrs[step - 1], clip_coefficient(gradient_norm(grad), max_norm));
      if (mark < kMarks.size() && kMarks[mark] == step) {
        const auto want = at::from_blob(const_cast<double*>(expected.data()) + mark * n, {n}, at::kDouble);
        worst = std::max(worst, (flat.to(at::kDouble) - want).abs().max().item<double>());
        ++mark;
      }
    }
    EXPECT_EQ(mark, kMarks.size());
    RecordProperty("worst", fmt::format("{:.2e}", worst));
    return worst;
  }
  void expect(const std::string& name, const OptimizerOptions& options, double tolerance, double max_norm = 0) {
    const double worst = follow(name, options, max_norm);
    if (skipped_) GTEST_SKIP() << "no .venv/bin/python with torch";
    EXPECT_LT(worst, tolerance) << name;
    if (std::getenv("CAIRN_TEST_VERBOSE") != nullptr) fmt::print("{} {:.2e}\n", name, worst);
  }

  static inline std::filesystem::path folder_;
  static inline bool ran_ = false;
  bool skipped_ = false;
};

OptimizerOptions adamw(std::vector<double> betas, double eps) {
  OptimizerOptions o = defaults("adamw");
  o.betas = std::move(betas);
  o.eps = eps;
  return o;
}
OptimizerOptions sgd(double momentum, bool nesterov, double weight_decay) {
  OptimizerOptions o = defaults("sgd");
  o.momentum = momentum;
  o.nesterov = nesterov;
  o.weight_decay = weight_decay;
  return o;
}
OptimizerOptions muon() {
  OptimizerOptions o = defaults("muon");
  o.adamw_lr_factor = 0.5;
  return o;
}

// Tolerances: absolute, after 1,000 steps, for parameters of size 1 (float32 has 6e-8 there).
TEST_F(TorchParity, AdamW) { expect("adamw", adamw({0.9, 0.95}, 1e-8), 2e-6); }
TEST_F(TorchParity, AdamWClipped) { expect("adamw_clip", adamw({0.9, 0.999}, 1e-6), 2e-6, 1.0); }
TEST_F(TorchParity, Sgd) { expect("sgd", sgd(0, false, 0), 2e-6); }
TEST_F(TorchParity, SgdMomentum) { expect("sgd_momentum", sgd(0.9, false, 0.1), 2e-6); }
TEST_F(TorchParity, SgdNesterov) { expect("sgd_nesterov", sgd(0.9, true, 0.1), 2e-6); }
// Newton-Schulz in float32 on both sides; its slope of 3.4 a step at small singular values widens rounding differences.
TEST_F(TorchParity, Muon) { expect("muon", muon(), 1e-5); }
TEST_F(TorchParity, MuonPlainMomentum) {
  OptimizerOptions o = muon();
  o.nesterov = false;
  o.ns_steps = 3;
  expect("muon_plain", o, 1e-5);
}
TEST_F(TorchParity, MuonMatchRms) {
  OptimizerOptions o = muon();
  o.adjust_lr_fn = "match_rms_adamw";
  expect("muon_rms", o, 1e-5);
}

}  // namespace
}  // namespace cairn::optim
