// The makers of the tasks, one a file; tasks.cpp holds the table. All throw std::invalid_argument for a template that
// names what the task does not have.
#pragma once

#include <memory>

#include "trainer/rl/tasks/task.h"

namespace cairn::rl {

// An expression of whole numbers to evaluate, * before + and -. Reference: the value.
// Fields: expression, question.
//   level     1   2    3    4    5   6    7    8
//   digits    1   2    3    1    2   2    3    4    of the operands, which have at most so many
//   operands  2   2    2    3    2   3    3    4
//   operators +   +-   +-   +-*  *   +-*  +-*  +-*
std::unique_ptr<Task> make_arithmetic(const config::TaskOptions& options);

// Reach a target from numbers with + - * / and parentheses. Every problem has a solution that uses each number once
// and whose steps are all positive whole numbers. Reference: such a solution; the reward `countdown` takes any.
// Fields: numbers (array), target, question.
//   level     1   2   3   4   5    6    7    8
//   numbers   2   3   3   4   4    5    6    7
//   largest   10  10  50  50  100  100  100  100
std::unique_ptr<Task> make_countdown(const config::TaskOptions& options);

// Whole numbers to put in ascending order. Reference: the numbers, sorted, with spaces between them.
// Fields: numbers (array), question.
//   level     1   2   3   4    5    6    7     8
//   numbers   3   4   6   8    12   16   24    32
//   largest   9   20  99  99   999  999  9999  9999
std::unique_ptr<Task> make_sorting(const config::TaskOptions& options);

// Keys with values far apart in noise, then the question for the value of one key. Reference: the value, four digits.
// Fields: text, key, question, distance (words between the pair and the question).
//   level     1   2   3   4   5    6    7    8
//   pairs     2   4   8   8   16   16   32   64
//   gap       0   4   8   16  16   32   64   64    words of noise before each pair
std::unique_ptr<Task> make_recall(const config::TaskOptions& options);

// Problems from files (records.h): `fields` renames, `prompt` and `answer` are templates (template.h) over a record's
// fields, `extract` takes the reference out of the answer (rewards/answer.h). A prompt that is one field with an array
// of {role, content} gives messages. Without `evaluation` the share held_out of `file` is the evaluation, by hash of
// the prompt; with it a problem of `file` whose prompt occurs in `evaluation` is left out of training. Fields: those of
// the record and of the map.
std::unique_ptr<Task> make_data_task(const config::TaskOptions& options);

}  // namespace cairn::rl
