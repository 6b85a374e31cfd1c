// What a run of reinforcement learning trains on: problems with random access. Problem i is a pure function of (seed,
// side, i), so a step's problems follow from its number, and resuming or replaying asks for the same ones.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/rl_options.h"
#include "trainer/rl/think.h"

namespace cairn::rl {

using Json = nlohmann::ordered_json;

struct Problem {
  std::string id;                 // names its content: equal problems have equal ids
  std::string prompt;             // plain text; where messages are given, the content of the last one
  std::vector<Message> messages;  // for the model's chat template; empty: the prompt is plain text
  std::string reference;          // the right answer
  int level = 0;                  // of a generated problem, from 1
  std::string source;             // of a file: "FILE: line N"
  Json fields = Json::object();   // what else it is made of: operands, numbers, the record of a file
};

// Training and evaluation never share a problem: what a problem is made of is hashed, and the hash says on which side
// it is. So the sides stay apart for every seed, level and order of files.
enum class Side { train, evaluation };

class Task {  // immutable, thread-safe
 public:
  virtual ~Task() = default;
  // Number of problems of a side; null: without end.
  virtual std::optional<int64_t> size(Side side) const = 0;
  // Throws std::out_of_range for an index outside 0 .. size-1; std::runtime_error, naming the task, where the side has
  // no such problem.
  virtual Problem problem(Side side, uint64_t seed, int64_t index) const = 0;
  // Names what the problems are made from; a replay compares it.
  virtual std::string digest() const = 0;
};

// By options.name, from the table in tasks.cpp. Files are read and checked here. Throws std::runtime_error "FILE: line
// N: ...", std::invalid_argument for options that fit no task.
std::unique_ptr<Task> make_task(const config::TaskOptions& options);

// Which problem the N-th draw of a run gets: of an endless task problem N itself; else every problem of the side once
// an epoch, in the order of the permutation of (seed, "task", epoch) (data/permutation.h).
int64_t drawn_index(const Task& task, Side side, uint64_t seed, int64_t draw);

// Hash of a problem's content, and the side that it is on.
uint64_t content_hash(std::string_view content);
Side side_of(uint64_t content_hash, double held_out);

}  // namespace cairn::rl
