// labels: quick
#include <gtest/gtest.h>

#include "trainer/fork_config.h"

namespace cairn {
namespace {

using config::Json;
using config::RunConfig;

RunConfig parent(const std::string& more = "train: {steps: 100, batch: 8, micro_batch: 2, lanes: 4}") {
  return config::parse(
      "model: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,"
      " vocab_size: 256, max_position_embeddings: 64}\n"
      "data: {train: [{text: /data/a.txt, weight: 2}], tokenizer: {bytes: true}, context: 32}\n"
      "optim: {lr: 0.1, schedule: {name: wsd, warmup: 4, decay: 8}}\n" +
          more,
      "/runs/a/run.yaml");
}

RunConfig fork(const RunConfig& from, int64_t step, const std::vector<std::string>& changes) {
  return fork_config(config::to_json(from), step, from.total_steps(), changes, "/runs/a/run.yaml");
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const config::ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(ForkConfig, WithoutChangesIsTheParents) { EXPECT_EQ(fork(parent(), 40, {}), parent()); }

TEST(ForkConfig, WhatLeavesTheDataOrderAloneLiesOverTheRun) {
  const RunConfig child = fork(parent(), 40, {"optim.lr=0.2", "train.steps=120", "model.dropout=0.1"});
  EXPECT_FALSE(child.staged);
  EXPECT_EQ(child.optim.lr, 0.2);
  EXPECT_EQ(child.total_steps(), 120);
  EXPECT_EQ(child.stages[0].schedule_steps, 120);
}

TEST(ForkConfig, OtherDataAreANewStage) {
  const RunConfig child = fork(parent(), 40, {"data.train.0.text=/data/b.txt", "data.context=16", "optim.lr=0.2"});
  ASSERT_EQ(child.stages.size(), 2);
  EXPECT_EQ(child.stages[0].data.train, parent().data.train);
  EXPECT_EQ(child.stages[0].data.context, 32);
  EXPECT_EQ(*child.stages[0].steps, 40);
  EXPECT_EQ(*child.stages[1].steps, 60);
  EXPECT_EQ(child.stages[1].data.train[0].text, "/data/b.txt");
  EXPECT_EQ(child.stages[1].data.train[0].name, "b");  // another source, not the old one with another text
  EXPECT_EQ(child.stages[1].data.train[0].weight, 2);
  EXPECT_EQ(child.stages[1].data.context, 16);
  EXPECT_EQ(child.stages[1].optim.lr, 0.2);
  // The schedule is the run's.
  EXPECT_EQ(child.stages[1].schedule_first, 0);
  EXPECT_EQ(child.stages[1].schedule_steps, 100);
}

TEST(ForkConfig, AScheduleBeginsAtTheFork) {
  const RunConfig child =
      fork(parent(), 40, {"optim.schedule={name: linear, warmup: 0, decay: null}", "train.steps=70"});
  ASSERT_EQ(child.stages.size(), 2);
  EXPECT_EQ(child.stages[1].schedule_first, 40);
  EXPECT_EQ(child.stages[1].schedule_steps, 30);
  EXPECT_EQ(child.stages[1].optim.schedule.name, "linear");
  EXPECT_EQ(child.stages[1].data, parent().data);
}

TEST(ForkConfig, StagesOfTheParentStay) {
  const RunConfig staged = parent(
      "train: {batch: 8, micro_batch: 2, lanes: 4}\n"
      "stages: [{name: one, steps: 30}, {name: two, steps: 30, data: {context: 16}}, {name: three, steps: 40}]");
  EXPECT_EQ(fork(staged, 45, {}), staged);
  const RunConfig child = fork(staged, 45, {"train.batch=16"});
  ASSERT_EQ(child.stages.size(), 4);
  EXPECT_EQ(*child.stages[1].steps, 15);
  EXPECT_EQ(*child.stages[2].steps, 15);
  EXPECT_EQ(child.stages[1].train.batch, 8);
  EXPECT_EQ(child.stages[2].train.batch, 16);
  EXPECT_EQ(child.stages[3].train.batch, 16);
  EXPECT_EQ(child.stages[2].data.context, 16);
  EXPECT_EQ(child.stages[3].data.context, 32);
}

TEST(ForkConfig, WhatCannotBeIsRefused) {
  EXPECT_NE(error_of([] { fork(parent(), 40, {"optim.learning_rate=1"}); }).find("did you mean 'lr'"),
            std::string::npos);
  EXPECT_NE(error_of([] { fork(parent(), 40, {"data.tokenizer={file: /data/a.txt}"}); }).find("data.tokenizer"),
            std::string::npos);
  EXPECT_NE(error_of([] {
              fork(parent(), 40, {"data.context=16", "train.steps=40"});
            }).find("more than 40"),
            std::string::npos);
  // A section that changes what the parent's steps read.
  EXPECT_NE(error_of([] { fork(parent(), 40, {"data={context: 16}"}); }).find("key by key"), std::string::npos);
  const RunConfig own = parent(
      "train: {batch: 8, micro_batch: 2, lanes: 4}\n"
      "stages: [{name: one, steps: 30}, {name: two, steps: 30, optim: {schedule: {name: linear}}}]");
  EXPECT_NE(error_of([&] { fork(own, 45, {"data.context=16"}); }).find("schedule of its own"), std::string::npos);
  EXPECT_EQ(fork(own, 30, {"data.context=16"}).stages.size(), 2);
}

}  // namespace
}  // namespace cairn
