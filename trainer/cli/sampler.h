// What `generate` and `chat` share: how to sample, and a model that is ready to answer.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "trainer/cli/cli.h"
#include "trainer/generate.h"

namespace cairn::cli {

struct SamplerOptions {
  std::string model, device = "auto";
  SamplingOptions sampling;
  int threads = 0;
};

void add_sampler(CLI::App& command, SamplerOptions& options);

struct Sampler {
  std::unique_ptr<models::Decoder> model;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  SamplingOptions sampling;  // as asked for, and what ends a text

  int64_t context() const { return model->config().max_position_embeddings; }
};

// The model and tokenizer of FOLDER, which is where options.model was found.
Sampler load_sampler(const SamplerOptions& options, const std::filesystem::path& folder);

// A prompt of no tokens begins where a document begins.
std::vector<int32_t> prompt_ids(const data::Tokenizer& tokenizer, const std::string& text);

// Shows a piece of an answer at once.
void show(std::string_view text);

}  // namespace cairn::cli
