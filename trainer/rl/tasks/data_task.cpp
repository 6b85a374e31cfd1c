#include <fmt/format.h>
#include <xxhash.h>

#include <filesystem>
#include <stdexcept>
#include <unordered_set>

#include "trainer/config/rl_reader.h"
#include "trainer/rl/rewards/answer.h"
#include "trainer/rl/tasks/generated.h"
#include "trainer/rl/tasks/records.h"

namespace cairn::rl {
namespace {

class DataTask : public Task {
 public:
  explicit DataTask(const config::TaskOptions& options)
      : options_(options),
        prompt_(options.prompt, "task.prompt"),
        answer_(options.answer, "task.answer"),
        extract_(options.extract, options.pattern) {
    files_.emplace_back(options.file);
    std::unordered_set<uint64_t> asked;  // prompts of the evaluation's own files
    if (!options.evaluation.empty()) {
      files_.emplace_back(options.evaluation);
      read(1, [&](uint64_t hash) {
        asked.insert(hash);
        return Side::evaluation;
      });
    }
    const bool own = !options.evaluation.empty();
    read(0, [&](uint64_t hash) -> std::optional<Side> {
      if (own) return asked.contains(hash) ? std::optional<Side>() : Side::train;
      return side_of(hash, options.held_out);
    });
    if (indices(Side::train).empty())
      throw std::runtime_error(fmt::format("{}: found no problem for training, all {} are held out for evaluation",
                                           options.file, files_[0].size()));
  }

  std::optional<int64_t> size(Side side) const override { return static_cast<int64_t>(indices(side).size()); }

  Problem problem(Side side, uint64_t, int64_t index) const override {
    const auto& of = indices(side);
    if (index < 0 || index >= static_cast<int64_t>(of.size()))
      throw std::out_of_range(fmt::format("task {}: problem {} of {} of the side of {}", options_.file, index,
                                          of.size(), side == Side::train ? "training" : "evaluation"));
    const auto [set, record] = of[static_cast<size_t>(index)];
    return make(set, record);
  }

  std::string digest() const override { return digest_; }

 private:
  struct Place {
    size_t set;
    int64_t record;
  };
  const std::vector<Place>& indices(Side side) const { return places_[side == Side::train ? 0 : 1]; }

  // Every record is made once, so that a broken one is found at the start and not after hours.
  template <class Choose>
  void read(size_t set, const Choose& choose) {
    XXH3_state_t* state = XXH3_createState();
    XXH3_64bits_reset(state);
    const std::string start = digest_ + config::to_json(options_without_paths()).dump();
    XXH3_64bits_update(state, start.data(), start.size());
    try {
      for (int64_t i = 0; i < files_[set].size(); ++i) {
        const Problem problem = make(set, i);
        if (const std::optional<Side> side = choose(content_hash(content(problem))))
          places_[*side == Side::train ? 0 : 1].push_back({set, i});
        const auto text = files_[set].text(i);
        XXH3_64bits_update(state, text.data(), text.size());
        XXH3_64bits_update(state, "\n", 1);
      }
    } catch (...) {
      XXH3_freeState(state);
      throw;
    }
    digest_ = fmt::format("{:016x}", XXH3_64bits_digest(state));
    XXH3_freeState(state);
  }

  config::TaskOptions options_without_paths() const {
    auto options = options_;
    options.file.clear();
    options.evaluation.clear();
    return options;
  }

  static std::string content(const Problem& problem) {
    std::string text;
    for (const auto& message : problem.messages) text += message.role + '\0' + message.content + '\0';
    return text.empty() ? problem.prompt : text;
  }

  Problem make(size_t set, int64_t record) const {
    const Records& records = files_[set];
    Problem problem;
    problem.fields = records.at(record);
    try {
      Json mapped = Json::object();
      for (const auto& [name, from] : options_.fields.names.items())
        mapped[name] = data::field_at(problem.fields, from.get<std::string>(), "task.fields." + name);
      for (const auto& [name, value] : mapped.items()) problem.fields[name] = value;
      render_prompt(problem);
      const std::string answer = answer_.render(problem.fields);
      const auto reference = extract_(answer);
      if (!reference || reference->empty())
        throw std::runtime_error(fmt::format("the answer '{}' has nothing by `extract: {}`",
                                             answer.size() > 200 ? answer.substr(0, 200) + "..." : answer,
                                             options_.extract));
      problem.reference = *reference;
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(fmt::format("{}: {}", records.where(record), error.what()));
    }
    problem.id = fmt::format("{}-{:016x}", std::filesystem::path(records.file(record)).filename().string(),
                             content_hash(content(problem)));
    problem.source = records.where(record);
    return problem;
  }

  void render_prompt(Problem& problem) const {
    const Json* whole = nullptr;
    if (!prompt_.only_field().empty()) whole = &data::field_at(problem.fields, prompt_.only_field(), "task.prompt");
    if (!whole || !whole->is_array()) {
      set_prompt(problem, prompt_.render(problem.fields), options_);
      if (problem.prompt.empty()) throw std::runtime_error("the prompt is empty");
      return;
    }
    if (!options_.system.empty()) problem.messages.push_back({"system", options_.system});
    for (const auto& message : *whole) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
          !message.contains("content") || !message["content"].is_string())
        throw std::runtime_error(
            fmt::format("field '{}' is a list, expected messages {{\"role\", \"content\"}}, found {}",
                        prompt_.only_field(), message.dump().substr(0, 200)));
      problem.messages.push_back({message["role"].get<std::string>(), message["content"].get<std::string>()});
    }
    if (whole->empty())
      throw std::runtime_error(fmt::format("field '{}' is an empty list of messages", prompt_.only_field()));
    problem.prompt = problem.messages.back().content;
  }

  config::TaskOptions options_;
  data::Template prompt_, answer_;
  Extract extract_;
  std::vector<Records> files_;
  std::vector<Place> places_[2];
  std::string digest_;
};

}  // namespace

std::unique_ptr<Task> make_data_task(const config::TaskOptions& options) { return std::make_unique<DataTask>(options); }

}  // namespace cairn::rl
