// Post-processors: the special tokens put around the ids of a text.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/data/tokenizer/json_fields.h"

namespace cairn::data {

struct Surround {
  std::vector<int32_t> before, after;
};

// What the component `post_processor` puts before and behind a single text.
Surround make_surround(const Json& component, const std::string& where = "post_processor");

}  // namespace cairn::data
