// A folder of files for one test, and the message that a bad configuration ends with.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "trainer/config/run_config.h"

namespace cairn::config {

class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("cairn_config_" + std::to_string(getpid()) + "_" +
                                                        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    write("corpus.txt", "text");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) {
    const auto path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // The least that makes a run; `more` is appended.
  static std::string minimal(const std::string& more = "") {
    return "model: {model_type: llama, hidden_size: 64, num_attention_heads: 4}\n"
           "data: {train: [{text: corpus.txt}], tokenizer: {bytes: true}}\n"
           "train: {steps: 100}\n" +
           more;
  }

  // What load() throws, with the test's folder taken out.
  std::string error(const std::string& file, const std::vector<std::string>& overrides = {}) {
    try {
      load(file, overrides);
    } catch (const ConfigError& error) {
      std::string text = error.what();
      const std::string prefix = folder_.string() + "/";
      for (auto at = text.find(prefix); at != std::string::npos; at = text.find(prefix)) text.erase(at, prefix.size());
      return text;
    }
    return "no error";
  }
  std::string error_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    return error(write("run.yaml", yaml), overrides);
  }
  RunConfig config_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    return load(write("run.yaml", yaml), overrides);
  }

  std::filesystem::path folder_;
};

}  // namespace cairn::config
