// labels: quick
// Every mistake ends with file, line, key, what was found and what is expected.
#include "tests/config/config_fixture.h"

namespace cairn::config {
namespace {

using ErrorsTest = ConfigTest;

TEST_F(ErrorsTest, UnknownKeysWithANearMatch) {
  EXPECT_EQ(error_of(minimal("metrics:\n  tensorbord: true\n")),
            "run.yaml:5: metrics.tensorbord: found an unknown key, expected one of tensorboard (did you mean "
            "'tensorboard'?)");
  EXPECT_NE(error_of(minimal("optim: {learning_rate: 1}\n"))
                .find("run.yaml:4: optim.learning_rate: found an unknown key, expected one of name, lr, "),
            std::string::npos);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"optim.learning_rate=1", "'lr'"},
      {"optim.wieght_decay=1", "'weight_decay'"},
      {"train.batch_size=4", "'batch'"},
      {"data.seq_len=4", "'context'"},
      {"optim.schedule.warmup_steps=4", "'warmup'"},
      {"optimizer.lr=1", "'optim'"},
      {"lr=1", "'optim.lr'"},
      {"train.context=4", "'data.context'"},
      {"checkpoint.every=1", "'checkpoints'"},
      {"train.max_steps=4", "'steps'"},
  };
  for (const auto& [assignment, match] : cases) {
    const std::string text = error_of(minimal(), {assignment});
    EXPECT_TRUE(text.starts_with("command line: " + assignment.substr(0, assignment.find('='))
                                                        .substr(0, assignment.starts_with("optimizer")     ? 9
                                                                   : assignment.starts_with("checkpoint.") ? 10
                                                                                                           : 99)))
        << text;
    EXPECT_NE(text.find("did you mean " + match), std::string::npos) << assignment << ": " << text;
  }
  EXPECT_EQ(error_of(minimal(), {"optim.qqqqqq=1"}).find("did you mean"), std::string::npos);
}

TEST_F(ErrorsTest, TypesAndRanges) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"optim.lr=-0.1", "optim.lr: found '-0.1', expected a number above 0"},
      {"optim.lr=fast", "optim.lr: found 'fast', expected a number above 0"},
      {"optim.lr=nan", "optim.lr: found 'nan', expected a number above 0"},
      {"optim.lr=\"1\"", "optim.lr: found the text '1', expected a number above 0"},
      {"optim.lr=[1]", "optim.lr: found a list, expected a number above 0"},
      {"optim.lr=null", "optim.lr: found nothing, expected a number above 0"},
      {"optim.betas=[0.9]", "optim.betas: found a list, expected a list of two numbers such as [0.9, 0.95]"},
      {"optim.betas=[0.9, 1.0]", "optim.betas.1: found '1.0', expected a number of at least 0 and below 1"},
      {"optim.name=adam", "optim.name: found 'adam', expected one of adamw, muon, sgd (did you mean 'adamw'?)"},
      {"optim.decay_roles=[matrx]",
       "optim.decay_roles.0: found 'matrx', expected one of matrix, embedding, head, norm, bias, other (did you mean "
       "'matrix'?)"},
      {"optim.nesterov=yes", "optim.nesterov: found 'yes', expected true or false"},
      {"optim.schedule=cosine", "optim.schedule: found 'cosine', expected a section (keys with values)"},
      {"train.steps=1.5", "train.steps: found '1.5', expected an integer of at least 1"},
      {"train.steps=0", "train.steps: found '0', expected an integer of at least 1"},
      {"train.batch=99999999999",
       "train.batch: found '99999999999', expected an integer of at least 1 and at most 16777216"},
      {"train.threads=many", "train.threads: found 'many', expected an integer of at least 1 and at most 4096 or auto"},
      {"train.threads=0", "train.threads: found '0', expected an integer of at least 1 and at most 4096 or auto"},
      {"train.precision=fp16", "train.precision: found 'fp16', expected one of float32, bf16-mixed, bf16"},
      {"checkpoints.keep=some", "checkpoints.keep: found 'some', expected all or {last, every, best}"},
      {"checkpoints.at=5", "checkpoints.at: found '5', expected a list such as [a, b]"},
      {"seed=-1", "seed: found '-1', expected an integer"},
      {"seed=[1]", "seed: found a list, expected a number or {init, data, dropout, sample}"},
      {"data.train=corpus.txt", "data.train: found 'corpus.txt', expected a list (each entry begins with '- ')"},
      {"data.train.5.text=x",
       "data.train.5.text: found '5' where a list is, expected a number from 0 to 1 (the last one appends)"},
      {"objective=dpo", "objective: found 'dpo', which is not there yet, expected one of pretrain, sft, grpo"},
      {"objective=pretrian",
       "objective: found 'pretrian', expected one of pretrain, sft, grpo (did you mean 'pretrain'?)"},
      {"trajectory.codec=gzip", "trajectory.codec: found 'gzip', expected one of plain, zstd, delta"},
  };
  for (const auto& [assignment, message] : cases)
    EXPECT_EQ(error_of(minimal(), {assignment}), "command line: " + message) << assignment;
}

TEST_F(ErrorsTest, PathsThatLeadNowhere) {
  const auto message = [&](const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    const RunConfig config = config_of(yaml, overrides);  // load() takes absolute paths as they are
    try {
      require_paths(config);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message(minimal()), "no error");
  EXPECT_EQ(message(minimal(), {"data.train.0.text=foldoc"}), "no error");
  EXPECT_EQ(message("model: {model_type: llama}\ndata:\n  train:\n    - {text: /nowhere/a.txt}\n"
                    "  tokenizer: {bytes: true}\ntrain: {steps: 3}\n"),
            path("run.yaml") +
                ":4: data.train.0.text: found '/nowhere/a.txt', where there is nothing, expected what it "
                "names to be there");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"data.train.0.jsonl=/nowhere/x", "data.train.0.jsonl"},
      {"data.train.0.shards=/nowhere/x", "data.train.0.shards"},
      {"data.validation=[{text: /nowhere/x}]", "data.validation.0.text"},
      {"data.tokenizer.file=/nowhere/x", "data.tokenizer.file"}};
  for (const auto& [assignment, key] : cases)
    EXPECT_TRUE(message(minimal(), {assignment}).starts_with("command line: " + key + ": found '/nowhere/x'"))
        << message(minimal(), {assignment});
  EXPECT_TRUE(message("model: {model_type: llama}\ndata: {train: [{text: corpus.txt}], tokenizer: {bytes: true}}\n"
                      "stages:\n- {steps: 1}\n- steps: 1\n  data: {train: [{text: /nowhere/b}]}\n")
                  .starts_with(path("run.yaml") + ":6: stages.1.data.train.0.text: found '/nowhere/b'"));
}

TEST_F(ErrorsTest, CombinationsThatMakeNoSense) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"train.lanes=3"},
       "command line: train.lanes: found 3, expected a power of two: lanes are joined in a binary tree"},
      {{"train.batch=12", "train.lanes=2", "train.micro_batch=4"},
       "command line: train.batch: found 12, expected a multiple of micro_batch * lanes (4 * 2 = 8)"},
      {{"train.batch=6", "train.lanes=4"},
       "command line: train.batch: found 6, expected a multiple of micro_batch * lanes (1 * 4 = 4)"},
      {{"train.micro_batch=5"},
       "run.yaml:3: train.batch: found 32, expected a multiple of micro_batch * lanes (5 * 1 = 5)"},
      {{"parallel.data=8"}, "command line: parallel.data: found 8, expected a divisor of train.lanes (4)"},
      {{"optim.schedule.warmup=101"},
       "command line: optim.schedule.warmup: found 101, expected at most 100, the steps of the schedule"},
      {{"optim.schedule={name: wsd, warmup: 50, decay: 60}"},
       "command line: optim.schedule.decay: found 60 after a warm-up of 50, expected together at most 100, the steps "
       "of the schedule"},
      {{"optim.schedule.decay=10"},
       "command line: optim.schedule.decay: found 10 for a schedule that does not decay by steps (constant), expected "
       "null, or linear, cosine or wsd"},
      {{"optim.schedule.name=cosine", "train.steps=null", "train.minutes=5"},
       "command line: optim.schedule.name: found 'cosine', whose decay needs to know the last step, while only "
       "train.minutes ends the run; expected train.steps, train.tokens or train.epochs, or `constant`"},
      {{"train.steps=null"},
       "command line: train.steps: found no rule that ends the run, expected steps, tokens, epochs or minutes (or "
       "`stages`)"},
      {{"model.num_attention_heads=5"},
       "command line: model.num_attention_heads: found 5, expected a divisor of hidden_size (64)"},
      {{"model.num_key_value_heads=3"},
       "command line: model.num_key_value_heads: found 3, expected a divisor of num_attention_heads (4)"},
      {{"model.num_attention_heads=0"},
       "command line: model.num_attention_heads: found 0, expected an integer of at least 1"},
      {{"model.from=somewhere"},
       "run.yaml:1: model.hidden_size: found a shape beside model.from, expected one or the other: the weights bring "
       "theirs; what may be added is an indexer, by a model_type that has one (llama_dsa, ...) and its index_ "
       "settings, and modules that predict further tokens, by num_nextn_predict_layers"},
      {{"model=null"},
       "command line: model: found nothing, expected `base: FILE`, Hugging Face config.json keys, or `from: ADDRESS`"},
      {{"model.vocab_size=100"},
       "command line: model.vocab_size: found 100, expected at least 256, the entries of data.tokenizer"},
      {{"data.tokenizer=null"},
       "command line: data.tokenizer: found nothing, expected {train: {kind: bpe, vocab_size: N}}, {file: "
       "tokenizer.json} or {bytes: true}"},
      {{"data.train=[]"}, "command line: data.train: found no source, expected a list such as [{text: FILE}]"},
      {{"data.train.0={text: foldoc, jsonl: foldoc}"},
       "command line: data.train.0.jsonl: found 'foldoc', which is neither beside the configuration nor in the current "
       "folder, expected a file, a folder or a glob of JSON lines"},
      {{"data.train.0.text="}, "run.yaml:2: data.train.0: found none of text, jsonl, shards, expected one"},
      {{"data.train.1.text=" + path("corpus.txt")},
       "command line: data.train.1: found the source 'corpus' a second time, expected it once (its `weight` makes it "
       "more frequent)"},
      {{"data.train.1={text: foldoc, name: x}", "data.train.0.name=x"},
       "command line: data.train.1.name: found 'x', which another source has already, expected a name of its own"},
      {{"data.train.0.text=missing.txt"},
       "command line: data.train.0.text: found 'missing.txt', which is neither beside the configuration nor in the "
       "current folder, expected a file, a folder, a glob or one of foldoc"},
      {{"data.train.0.dtype=uint16"},
       "command line: data.train.0.dtype: found 'uint16' on a source of text, expected it with `shards` alone"},
      {{"eval.every=10"},
       "command line: eval.every: found 10 without anything to validate on, expected data.validation or "
       "data.validation_fraction, or 0"},
      {{"checkpoints.keep.best=true"},
       "command line: checkpoints.keep.best: found true without a validation loss to go by, expected eval.every and "
       "data.validation or data.validation_fraction"},
      {{"optim.name=muon", "optim.momentum=0"},
       "command line: optim.momentum: found 0 while optim.nesterov is true, expected a momentum above 0 or `nesterov: "
       "false`"},
      {{"nonsense"}, "command line: found 'nonsense', expected key=value such as optim.lr=1e-3"},
      {{"optim.=1"}, "command line: optim.: found an empty name, expected names with single dots between them"},
  };
  for (const auto& [overrides, message] : cases) {
    const std::string text = error_of(minimal(), overrides);
    // Where an override makes a whole section, its keys have no line of their own but the section's.
    EXPECT_EQ(text, message) << overrides[0];
  }
}

TEST_F(ErrorsTest, ContextBeyondTheModelNamesBothPlaces) {
  write("tiny.yaml", "model_type: llama\n\nmax_position_embeddings: 128\n");
  EXPECT_EQ(error_of("model: {base: tiny.yaml}\ndata:\n  train: [{text: corpus.txt}]\n  tokenizer: {bytes: true}\n  "
                     "context: 256\ntrain: {steps: 1}\n"),
            "run.yaml:5: data.context: found 256, expected at most 128, the max_position_embeddings of the model "
            "(tiny.yaml:3)");
}

TEST_F(ErrorsTest, FilesAndSyntax) {
  EXPECT_THROW(load(path("none.yaml")), std::runtime_error);
  EXPECT_EQ(error_of("optim: {lr: 1\nmodel: x\n").substr(0, 36), "run.yaml:2: found no valid YAML: end");
  EXPECT_EQ(error_of("seed: 1\noptim: {}\nseed: 2\n"),
            "run.yaml:3: seed: found the key a second time, expected it once (line 1)");
  EXPECT_EQ(error_of("- a\n"), "run.yaml:1: found a list, expected keys with values");
  EXPECT_EQ(error_of("seed: 1\n---\nseed: 2\n"), "run.yaml:3: found a second document, expected one");
  EXPECT_EQ(error_of("").substr(0, 26), "run.yaml:1: model: found n");
}

TEST_F(ErrorsTest, Includes) {
  EXPECT_EQ(error_of("seed: 1\nmodel: {base: none.yaml}\n"),
            "run.yaml:2: base: found 'none.yaml', expected a YAML file (there is none at 'none.yaml')");
  EXPECT_EQ(error_of("base: run.yaml\n"),
            "run.yaml:1: base: found 'run.yaml', which includes itself, expected a file that does not lead back");
  write("a.yaml", "base: b.yaml\n");
  write("b.yaml", "x: 1\nbase: a.yaml\n");
  EXPECT_EQ(error_of("model: {base: a.yaml}\n"),
            "b.yaml:2: base: found 'a.yaml', which includes itself, expected a file that does not lead back");
  write("c.yaml", "model_type: llama\nrope_scaling: {base: c.yaml}\n");
  EXPECT_EQ(error_of("model: {base: c.yaml}\n"),
            "c.yaml:2: base: found 'c.yaml', which includes itself, expected a file that does not lead back");
  write("d.yaml", "- 1\n");
  EXPECT_EQ(error_of("model: {base: d.yaml}\n"), "d.yaml:1: found a list, expected keys with values");
  EXPECT_EQ(error_of("model: {base: [1]}\n"), "run.yaml:1: base: found a list, expected the name of a YAML file");
  // The same file twice side by side is no cycle.
  write("e.yaml", "model_type: llama\n");
  EXPECT_EQ(error_of("model: {base: e.yaml, rope_scaling: {base: e.yaml}}\ndata: {train: [{text: corpus.txt}], "
                     "tokenizer: {bytes: true}}\ntrain: {steps: 1}\n"),
            "no error");
}

TEST_F(ErrorsTest, OthersReportThroughIt) {
  const auto config = config_of(minimal());
  try {
    config.fail("model.hidden_size", "found 64, expected 65");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()), path("run.yaml") + ":1: model.hidden_size: found 64, expected 65");
  }
  EXPECT_EQ(near_match("hiden_size", {"hidden_size", "head_dim"}), "hidden_size");
  EXPECT_EQ(near_match("n_layer", {"num_hidden_layers", "head_dim"}), "num_hidden_layers");
  EXPECT_EQ(near_match("zzz", {"hidden_size"}), "");
}

}  // namespace
}  // namespace cairn::config
