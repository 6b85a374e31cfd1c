// The keys as a list: from the same visitors that read them.
#pragma once

#include <string>
#include <vector>

#include "trainer/config/rules.h"

namespace cairn::config {

struct KeyDescription {
  std::string key;       // "data.train.0.text"
  std::string standard;  // the default as run.yaml writes it; empty for a section
  std::string allowed;   // "a number above 0"; empty for a section
  std::string doc;
};

const std::vector<KeyDescription>& key_descriptions();

// "an integer of at least 1 or auto", "one of adamw, muon, sgd"; `kind` is "a number", "a text", ...
std::string describe_rule(const Rule& rule, const std::string& kind);

}  // namespace cairn::config
