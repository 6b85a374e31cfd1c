// labels: quick
// Stages: what they change, what they may not, and their schedules.
#include "tests/config/config_fixture.h"

namespace cairn::config {
namespace {

class StagesTest : public ConfigTest {
 protected:
  static std::string staged(const std::string& stages) {
    return "model: {model_type: llama}\n"
           "data: {train: [{text: corpus.txt}], tokenizer: {bytes: true}, context: 64}\n"
           "optim: {lr: 0.5, weight_decay: 0.2, schedule: {name: wsd, warmup: 2, decay: 5}}\n"
           "stages:\n" +
           stages;
  }
};

TEST_F(StagesTest, EachIsTheRunWithItsChanges) {
  write("more/maths.txt", "x");
  const auto config =
      config_of(staged("  - {steps: 10}\n"
                       "  - name: long\n"
                       "    steps: 5\n"
                       "    data: {context: 128, train: [{text: corpus.txt}, {text: more/maths.txt, weight: 2}]}\n"
                       "    train: {batch: 6}\n"
                       "  - {steps: 20, optim: {lr: 0.1, schedule: {warmup: 0, decay: 20}}}\n"));
  ASSERT_EQ(config.stages.size(), 3u);
  EXPECT_TRUE(config.staged);
  EXPECT_EQ(config.total_steps(), 35);
  const auto &first = config.stages[0], &second = config.stages[1], &third = config.stages[2];
  EXPECT_EQ(first.name, "stage-1");
  EXPECT_EQ(first.data, config.data);
  EXPECT_EQ(second.name, "long");
  EXPECT_EQ(second.first, 10);
  EXPECT_EQ(second.data.context, 128);
  ASSERT_EQ(second.data.train.size(), 2u);
  EXPECT_EQ(second.data.train[0].name, config.data.train[0].name);  // the same source goes on where it stood
  EXPECT_EQ(second.data.train[1].text, path("more/maths.txt"));
  EXPECT_TRUE(second.data.tokenizer.bytes);
  EXPECT_EQ(second.train.batch, 6);
  EXPECT_EQ(second.train.lanes, 2);  // `auto` again, for its batch
  EXPECT_EQ(first.train.lanes, 4);
  EXPECT_EQ(third.data.context, 64);  // of the run, not of the stage before
  EXPECT_EQ(third.optim.lr, 0.1);
  EXPECT_EQ(third.optim.weight_decay, 0.2);
  // The schedule of the run lasts all 35 steps; the third stage has its own.
  EXPECT_EQ(second.schedule_first, 0);
  EXPECT_EQ(second.schedule_steps, 35);
  EXPECT_EQ(third.schedule_first, 15);
  EXPECT_EQ(third.schedule_steps, 20);
  EXPECT_EQ(third.optim.schedule.name, "wsd");
  EXPECT_EQ(config.stage_of(1).name, "stage-1");
  EXPECT_EQ(config.stage_of(10).name, "stage-1");
  EXPECT_EQ(config.stage_of(11).name, "long");
  EXPECT_EQ(config.stage_of(35).name, "stage-3");
  EXPECT_EQ(config.stage_of(99).name, "stage-3");

  const auto again = load(write("again/run.yaml", to_yaml(config)));
  EXPECT_EQ(to_json(again), to_json(config));
  EXPECT_TRUE(again == config) << to_yaml(config);
}

TEST_F(StagesTest, ContextIsCheckedPerStage) {
  EXPECT_EQ(error_of(staged("  - {steps: 30}\n  - {steps: 5, data: {context: 4096}}\n"),
                     {"model.max_position_embeddings=512"}),
            "run.yaml:6: stages.1.data.context: found 4096, expected at most 512, the max_position_embeddings of the "
            "model (command line)");
}

TEST_F(StagesTest, WhatMayNotChange) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{steps: 9, model: {}}",
       "run.yaml:5: stages.0.model: found a change of model, expected one of name, steps, data, optim, indexer, index_topk, experts, train: model "
       "stays the same inside a run"},
      {"{steps: 9, seed: 2}",
       "run.yaml:5: stages.0.seed: found a change of seed, expected one of name, steps, data, optim, indexer, index_topk, experts, train: seed stays "
       "the same inside a run"},
      {"{steps: 9, data: {tokenizer: {bytes: true}}}",
       "run.yaml:5: stages.0.data.tokenizer: found a change inside a run, expected none: the ids of the tokens would "
       "change their meaning"},
      {"{steps: 9, optim: {name: sgd}}",
       "run.yaml:5: stages.0.optim.name: found a change inside a run, expected none: the optimizer's state would not "
       "fit"},
      {"{steps: 9, train: {precision: bf16}}",
       "run.yaml:5: stages.0.train.precision: found a change inside a run, expected none: the state would not fit"},
      {"{steps: 9, dat: {}}",
       "run.yaml:5: stages.0.dat: found an unknown key, expected one of name, steps, data, optim, indexer, index_topk, experts, train (did you mean "
       "'data'?)"},
      {"{name: x}", "run.yaml:5: stages.0.steps: found nothing, expected the number of steps of the stage"},
      {"{steps: 0}", "run.yaml:5: stages.0.steps: found '0', expected an integer of at least 1"},
      {"{steps: 9, train: {batch: 6, lanes: 4}}",
       "run.yaml:5: stages.0.train.batch: found 6, expected a multiple of micro_batch * lanes (1 * 4 = 4)"},
      {"{steps: 4}",
       "run.yaml:3: optim.schedule.decay: found 5 after a warm-up of 2, expected together at most 4, the steps of the "
       "schedule"},
  };
  for (const auto& [stage, message] : cases) EXPECT_EQ(error_of(staged("  - " + stage + "\n")), message) << stage;
  EXPECT_EQ(
      error_of(staged("  - {steps: 9}\n") + "train: {steps: 9}\n"),
      "run.yaml:6: train.steps: found it beside `stages`, expected one or the other: the stages' steps end the run");
  EXPECT_EQ(error_of(staged("  - {steps: 9, name: a}\n  - {steps: 9, name: a}\n")),
            "run.yaml:6: stages.1.name: found 'a', which another stage has already, expected a name of its own");
}

TEST_F(StagesTest, AMixtureMayBeLeftToTheStages) {
  const auto config = config_of(
      "model: {model_type: llama}\ndata: {tokenizer: {bytes: true}}\nstages: [{steps: 3, data: {train: [{text: "
      "corpus.txt}]}}]\n");
  EXPECT_EQ(config.stages[0].data.train[0].name, "corpus");
  EXPECT_TRUE(load(write("again/run.yaml", to_yaml(config))) == config);
}

}  // namespace
}  // namespace cairn::config
