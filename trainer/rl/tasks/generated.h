// What the generated tasks share: levels, the two sides, prompts. A task says how one problem is drawn.
#pragma once

#include <array>
#include <string>

#include "trainer/data/template.h"
#include "trainer/rl/tasks/draws.h"
#include "trainer/rl/tasks/kinds.h"

namespace cairn::rl {

constexpr int kLevels = 8;

class GeneratedTask : public Task {
 public:
  // `prompt`: the template where the options have none.
  GeneratedTask(const config::TaskOptions& options, const std::string& prompt);

  std::optional<int64_t> size(Side) const override { return std::nullopt; }
  Problem problem(Side side, uint64_t seed, int64_t index) const override;
  std::string digest() const override;

 protected:
  struct Drawn {
    std::string content;    // equal for equal problems, whatever their level; says the side
    std::string reference;  // of the problem
    Json fields;            // what templates name; `question` among them
  };
  virtual Drawn draw(Draws& draws, int level) const = 0;

  config::TaskOptions options_;

 private:
  data::Template prompt_;
};

// The prompt, or messages with it.
void set_prompt(Problem& problem, std::string prompt, const config::TaskOptions& options);

}  // namespace cairn::rl
