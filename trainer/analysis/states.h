// The states that are analysed: their weights tensor by tensor (from a folder or from the run's trajectory), their
// models, the run that they belong to, and the text that every model metric uses.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "models/decoder.h"
#include "trainer/address.h"
#include "trainer/data/dataset.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::analysis {

// What the user may set; each metric says which of them decide its result.
struct Settings {
  std::string text;                                              // a file; empty: the run's validation set
  int64_t tokens = 2048;                                         // of the fixed text, at most
  int64_t context = 0;                                           // of its rows; 0: the model's, at most 256
  int64_t last = 5;                                              // averaged: states in the mean
  int64_t points = 11;                                           // barrier: on the line, both ends included
  int64_t samples = 64;                                          // memorised: windows of training text
  uint64_t seed = 0;                                             // memorised: which ones
  std::vector<double> thresholds = {0, 1e-6, 1e-4, 1e-3, 1e-2};  // sparsity
};

// One state.
struct StateInfo {
  std::string address;           // as the user would write it
  int64_t step = 0;              // of the run or series; its number in the set where there are no steps
  std::filesystem::path folder;  // in the Hugging Face layout; empty: only the trajectory has it
};

// The floating tensors of one state.
class Weights {
 public:
  struct Tensor {
    checkpoints::TensorView view;
    std::shared_ptr<const void> owner;  // keeps the view alive
  };
  virtual ~Weights() = default;
  virtual const std::vector<std::string>& names() const = 0;  // sorted
  // Throw std::runtime_error where there is none of that name. Any thread.
  virtual Tensor get(const std::string& name) const = 0;
  virtual std::vector<int64_t> shape(const std::string& name) const = 0;
};

// Rows of tokens that every state is asked about.
struct FixedText {
  std::vector<data::Batch> batches;  // of at most 8 rows; targets -1 are not predicted
  int64_t targets = 0;               // predicted in all
  std::string key;                   // digest of ids and targets
};

class States {
 public:
  // `located`: ascending by step, at least one. With `trajectory` the steps of RUN/trajectory join them where the
  // states are of one run that has one. Throws std::invalid_argument for an empty set or a step given twice,
  // std::runtime_error for states whose tensors differ in name or shape (all are compared with the first).
  States(std::vector<Located> located, Settings settings, bool trajectory);
  // The steps of RUN/trajectory alone, for a run that keeps no checkpoint: weights, no models. Throws
  // std::runtime_error where there are none.
  static States of_trajectory(const std::filesystem::path& run, Settings settings);
  States(const States&);  // shares what is opened on demand
  ~States();

  size_t size() const { return states_.size(); }
  const StateInfo& operator[](size_t i) const { return states_[i]; }
  const Settings& settings() const { return settings_; }
  // The run that all states are of; empty for foreign series and mixed sets.
  const std::filesystem::path& run() const { return run_; }
  // Pairs are rounded to this type before they are compared: that of the trajectory where one side of a pair may come
  // from it. Nothing: as they are.
  std::optional<checkpoints::DType> common_dtype() const { return common_; }

  // What the user should know: a trajectory that is left aside, and why.
  const std::vector<std::string>& notes() const { return notes_; }

  // What follows may be called on any thread.
  // Digest of the state's weights and config.json, from manifests where there are any; empty: not known, so nothing
  // that uses the state is cached.
  std::string key(size_t i) const;
  std::unique_ptr<Weights> weights(size_t i) const;
  std::unique_ptr<models::Decoder> model(size_t i) const;  // float32, on the CPU
  // The tokenizer of the first state that has a folder.
  std::shared_ptr<const data::Tokenizer> tokenizer() const;
  // --text, else rows of the run's first validation set. Throws std::invalid_argument where there is neither.
  const FixedText& text() const;
  // The run's data, opened as training opens them, or as it opened them for the step, if its settings changed since.
  // Throws std::invalid_argument where the states are of no run.
  const data::Dataset& data(std::optional<int64_t> step = {}) const;

  // The states that have a folder, for metrics that run models.
  States with_folders() const;

 private:
  struct Shared;
  States();
  void join_trajectory();

  std::vector<StateInfo> states_;
  Settings settings_;
  std::filesystem::path run_;
  std::optional<checkpoints::DType> common_;
  std::vector<std::string> notes_;
  std::shared_ptr<Shared> shared_;  // what is opened once, on demand
};

}  // namespace cairn::analysis
