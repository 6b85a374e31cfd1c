// labels: quick
// Includes, overrides, defaults, and run.yaml read back.
#include "tests/config/config_fixture.h"

namespace cairn::config {
namespace {

namespace fs = std::filesystem;

using LoadTest = ConfigTest;

// Changes the current folder for a scope.
struct InFolder {
  explicit InFolder(const fs::path& to) : before(fs::current_path()) { fs::current_path(to); }
  ~InFolder() { fs::current_path(before); }
  fs::path before;
};

TEST_F(LoadTest, ReadsEverySection) {
  const auto config = config_of(R"(
objective: pretrain
seed: {init: 1, data: 2, dropout: 3, sample: 18446744073709551615}
model: {model_type: llama, hidden_size: 64, rms_norm_eps: 1e-5, rope_scaling: {rope_type: linear, factor: 2.0}, head_dim: null,
        tie_word_embeddings: true, init: {name: scaled, std: 0.01}, dropout: 0.1}
data:
  train:
    - {text: corpus.txt, weight: 3, separator: "\n\n"}
    - {jsonl: corpus.txt, field: question, name: maths}
  validation: [{text: foldoc}]
  validation_fraction: 0.05
  tokenizer: {train: {vocab_size: 512}}
  context: 128
  mask_documents: true
optim: {name: muon, lr: 2.0e-2, adamw_lr: 1e-3, betas: [0.8, 0.99], decay_roles: [matrix], schedule: {name: cosine, warmup: 10, final: 0.1}}
train: {tokens: 1e6, batch: 16, micro_batch: 2, lanes: 2, threads: 3, precision: bf16-mixed, on_spike: {action: skip, factor: 2.5}}
checkpoints: {every: 50, log_spaced: true, at: [3, 7], keep: {last: 2, every: 100, best: true}, async: false}
eval: {every: 20, sequences: 8}
parallel: {data: 2, zero: 1}
metrics: {tensorboard: false}
)");
  EXPECT_EQ(config.seed.data, 2u);
  EXPECT_EQ(config.seed.sample, UINT64_MAX);
  EXPECT_EQ(config.model.config["hidden_size"], 64);
  EXPECT_EQ(config.model.config["rms_norm_eps"], 1e-5);
  EXPECT_TRUE(config.model.config["rms_norm_eps"].is_number_float());
  EXPECT_EQ(config.model.config["rope_scaling"]["rope_type"], "linear");
  EXPECT_TRUE(config.model.config["head_dim"].is_null());
  EXPECT_EQ(config.model.config["tie_word_embeddings"], true);
  EXPECT_FALSE(config.model.config.contains("init"));
  EXPECT_EQ(config.model.init.name, "scaled");
  EXPECT_EQ(config.model.dropout, 0.1);
  ASSERT_EQ(config.data.train.size(), 2u);
  EXPECT_EQ(config.data.train[0].text, path("corpus.txt"));
  EXPECT_EQ(config.data.train[0].name, "corpus");
  EXPECT_EQ(config.data.train[0].separator, "\n\n");
  EXPECT_EQ(config.data.train[1].name, "maths");
  EXPECT_EQ(config.data.validation[0].text, "foldoc");  // a known name is no path
  EXPECT_EQ(config.data.tokenizer.train->vocab_size, 512);
  EXPECT_EQ(config.optim.betas[1], 0.99);
  EXPECT_EQ(config.optim.adamw_lr, 1e-3);
  EXPECT_EQ(config.optim.decay_roles, std::vector<std::string>{"matrix"});
  EXPECT_EQ(config.train.tokens, 1000000);
  EXPECT_EQ(config.total_steps(), 489);  // 1e6 / (16 * 128) rounded up
  EXPECT_EQ(config.train.on_spike.factor, 2.5);
  EXPECT_EQ(config.checkpoints.at, (std::vector<int64_t>{3, 7}));
  EXPECT_FALSE(config.checkpoints.keep.all);
  EXPECT_TRUE(config.checkpoints.keep.best);
  EXPECT_EQ(config.parallel.zero, 1);
  ASSERT_EQ(config.stages.size(), 1u);
  EXPECT_EQ(config.stages[0].steps, 489);
  EXPECT_EQ(config.stages[0].data, config.data);
}

TEST_F(LoadTest, DefaultsAndAuto) {
  const auto config = config_of(minimal());
  EXPECT_EQ(config.seed.init, 1234u);
  EXPECT_EQ(config.optim.lr, 1e-3);
  EXPECT_EQ(config.train.lanes, 4);
  EXPECT_EQ(config.train.micro_batch, 8);
  EXPECT_EQ(config.train.threads, 0);
  EXPECT_TRUE(config.checkpoints.keep.all);
  EXPECT_FALSE(config.optim.schedule.decay.has_value());
  const auto sgd = config_of(minimal(), {"optim.name=sgd"});
  EXPECT_EQ(sgd.optim.momentum, 0.9);
  EXPECT_EQ(sgd.optim.weight_decay, 0.0);
  EXPECT_TRUE(load(write("again.yaml", to_yaml(config_of(minimal(), {"optim.name=sgd", "optim.weight_decay=0.3"}))))
                  .optim.weight_decay == 0.3);
  // `auto` fits the batch
  const auto odd = config_of(minimal(), {"train.batch=6"});
  EXPECT_EQ(odd.train.lanes, 2);
  EXPECT_EQ(odd.train.micro_batch, 3);
  const auto given = config_of(minimal(), {"train.batch=24", "train.micro_batch=12"});
  EXPECT_EQ(given.train.lanes, 2);
}

TEST_F(LoadTest, BaseIsRelativeToTheFileThatNamesIt) {
  write("models/tiny.yaml",
        "model_type: llama\nhidden_size: 64\nnum_attention_heads: 4\nmax_position_embeddings: 512\n");
  write("models/wide.yaml", "base: tiny.yaml\nhidden_size: 128\n");
  write("common/optim.yaml", "lr: 0.5\nschedule: {name: cosine, warmup: 5}\n");
  write("common/all.yaml",
        "model: {base: ../models/wide.yaml}\noptim: {base: optim.yaml, clip: 2}\ntrain: {steps: 100}\n");
  const auto file = write("runs/run.yaml",
                          "base: ../common/all.yaml\n"
                          "model: {num_attention_heads: 8}\n"
                          "data: {train: [{text: ../corpus.txt}], tokenizer: {bytes: true}}\n"
                          "optim: {schedule: {warmup: 7}}\n");
  const auto config = load(file);
  EXPECT_EQ(config.model.config["hidden_size"], 128);
  EXPECT_EQ(config.model.config["num_attention_heads"], 8);
  EXPECT_EQ(config.model.config["max_position_embeddings"], 512);
  EXPECT_EQ(config.optim.lr, 0.5);
  EXPECT_EQ(config.optim.clip, 2);
  EXPECT_EQ(config.optim.schedule.name, "cosine");
  EXPECT_EQ(config.optim.schedule.warmup, 7);
  EXPECT_EQ(config.locate("model.hidden_size"), (Location{path("models/wide.yaml"), 2}));
  EXPECT_EQ(config.locate("model.max_position_embeddings"), (Location{path("models/tiny.yaml"), 4}));
  EXPECT_EQ(config.locate("optim.schedule.warmup"), (Location{file, 4}));
  EXPECT_EQ(config.locate("model.never_written").line, 2);  // its section
  EXPECT_EQ(config.locate("model.rope_scaling.factor").line, 2);

  // On the command line a base replaces the file's, and is looked for in the current folder.
  InFolder in(folder_);
  EXPECT_EQ(load(file, {"model.base=models/tiny.yaml"}).model.config["hidden_size"], 64);
  EXPECT_EQ(load(file, {"model={base: models/tiny.yaml}"}).model.config["hidden_size"], 64);
}

TEST_F(LoadTest, HuggingFaceConfigJsonIsABase) {
  write("config.json",
        "{\n  \"model_type\": \"llama\",\n  \"hidden_size\": 64, \"rms_norm_eps\": 1e-05,\n  \"num_attention_heads\": "
        "4, \"rope_scaling\": null\n}\n");
  const auto config = config_of(
      "model: {base: config.json}\ndata: {train: [{text: corpus.txt}], tokenizer: {bytes: true}}\ntrain: {steps: 1}\n");
  EXPECT_EQ(config.model.config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config.locate("model.hidden_size").line, 3);
}

TEST_F(LoadTest, Overrides) {
  write("other text.txt", "x");
  InFolder in(folder_);
  const auto config = config_of(
      minimal(), {"optim.lr=3e-4", "optim.betas=[0.5, 0.6]", "data.train.0.text=other text.txt", "model.hidden_size=32",
                  "data.train.1.jsonl=corpus.txt", "train.sample.prompt=To be: or # not", "checkpoints.keep.last=3",
                  "data.tokenizer={train: {vocab_size: 300}}", "optim.adamw_lr=0.1", "optim.adamw_lr=null", "seed=9"});
  EXPECT_EQ(config.optim.lr, 3e-4);
  EXPECT_EQ(config.optim.betas[0], 0.5);
  EXPECT_EQ(config.data.train[0].text, path("other text.txt"));
  EXPECT_EQ(config.data.train[1].jsonl, path("corpus.txt"));
  EXPECT_EQ(config.model.config["hidden_size"], 32);
  EXPECT_EQ(config.train.sample.prompt, "To be: or # not");
  EXPECT_FALSE(config.checkpoints.keep.all);
  EXPECT_EQ(config.checkpoints.keep.last, 3);
  EXPECT_EQ(config.data.tokenizer.train->vocab_size, 300);
  EXPECT_FALSE(config.data.tokenizer.bytes);  // the kinds exclude one another
  EXPECT_FALSE(config.optim.adamw_lr.has_value());
  EXPECT_EQ(config.seed.sample, 9u);
  // The kind of a source too: text gives way.
  EXPECT_EQ(config_of(minimal(), {"data.train.0.jsonl=corpus.txt"}).data.train[0].text, "");
}

TEST_F(LoadTest, NamesOfSources) {
  write("a/web.jsonl.zst", "x");
  write("b/web.jsonl", "x");
  write("books/one.txt", "x");
  const auto config = config_of(
      minimal(), {"data.train=[{jsonl: a/web.jsonl.zst}, {jsonl: b/web.jsonl}, {text: 'books/*.txt'}, {text: "
                  "corpus.txt, name: web-2}]",
                  "data.train.0.jsonl=" + path("a/web.jsonl.zst"), "data.train.1.jsonl=" + path("b/web.jsonl"),
                  "data.train.2.text=" + path("books/*.txt"), "data.train.3.text=" + path("corpus.txt")});
  EXPECT_EQ(config.data.train[0].name, "web");
  EXPECT_EQ(config.data.train[1].name, "web-3");  // web-2 was given to another
  EXPECT_EQ(config.data.train[2].name, "books");
  EXPECT_EQ(config.data.train[2].text, path("books/*.txt"));
}

TEST_F(LoadTest, RunYamlGivesTheSameRunFromAnywhere) {
  write("models/tiny.yaml",
        "model_type: llama\nhidden_size: 64\nnum_attention_heads: 4\nrope_theta: 10000.0\nname: 'true'\n");
  const auto config = config_of(R"(
seed: {init: 7}
model: {base: models/tiny.yaml, dropout: 0.1, rope_scaling: {rope_type: llama3, factor: 8.0, list: [1, 2.5, "3"]}}
data:
  train: [{text: corpus.txt, separator: "a: \"b\"\n\té—"}, {text: corpus.txt, name: "1e3"}]
  tokenizer: {bytes: true}
optim: {lr: 0.0012345678901234567, schedule: {name: wsd, warmup: 3, decay: 10}}
train: {steps: 100, epochs: 1.5, batch: 6, sample: {every: 5, prompt: "- x: {y}"}}
checkpoints: {at: [1, 2], keep: {every: 5}}
)");
  const std::string text = to_yaml(config);
  write("elsewhere/run.yaml", text);
  InFolder in(folder_ / "elsewhere");
  const auto again = load("run.yaml");
  EXPECT_EQ(to_json(again), to_json(config));
  EXPECT_TRUE(again == config) << text;
  EXPECT_EQ(to_yaml(again), text);
  EXPECT_TRUE(again.model.config["rope_theta"].is_number_float());
  EXPECT_EQ(again.data.train[1].name, "1e3");
  EXPECT_EQ(again.locate("optim.lr").file, "run.yaml");

  // Every default is written out.
  for (const char* key : {"minutes: null", "threads: auto", "decay_roles: [matrix, head]", "validation_fraction: 0.0",
                          "tensorboard: true", "eps: 1.0e-08", "micro_batch: 3", "lanes: 2"})
    EXPECT_NE(text.find(key), std::string::npos) << key << " in\n" << text;
  // A resolved run can still be changed.
  EXPECT_EQ(load("run.yaml", {"optim.lr=0.5"}).optim.lr, 0.5);
}

TEST_F(LoadTest, AlternativesThatAreNotChosenExcludeNothing) {
  const std::string file = "data.tokenizer.file=" + write("tokenizer.json", "{}");
  EXPECT_EQ(config_of(minimal(), {file, "data.tokenizer.bytes=false"}).data.tokenizer.file, path("tokenizer.json"));
  EXPECT_EQ(config_of(minimal(), {file, "data.tokenizer.train=null"}).data.tokenizer.file, path("tokenizer.json"));
  EXPECT_EQ(config_of(minimal(), {"data.train.0.jsonl="}).data.train[0].text, path("corpus.txt"));
  EXPECT_FALSE(config_of(minimal(), {"data.tokenizer.bytes=true", file}).data.tokenizer.bytes);
  // run.yaml writes every alternative; another one laid over it is chosen all the same.
  write("all.yaml", to_yaml(config_of(minimal(), {file})));
  const RunConfig bytes = config_of("base: all.yaml\ndata: {tokenizer: {bytes: true}}\n");
  EXPECT_TRUE(bytes.data.tokenizer.bytes);
  EXPECT_FALSE(bytes.data.tokenizer.file);
  const auto shards = load(path("all.yaml"), {"data.train.0.shards=" + path("corpus.txt")}).data.train[0];
  EXPECT_EQ(shards.shards, path("corpus.txt"));
  EXPECT_EQ(shards.text, "");
}

TEST_F(LoadTest, ConfigurationsThatComeWithTheProject) {
  const fs::path configs = fs::path(CAIRN_SOURCE_DIR) / "configs";
  const auto quickstart = load(configs / "pretrain/quickstart.yaml");
  EXPECT_EQ(quickstart.data.train[0].text, "foldoc");
  EXPECT_EQ(quickstart.model.config["hidden_size"], 256);
  load(configs / "pretrain/shakespeare.yaml", {"data.train.0.text=" + path("corpus.txt")});
  for (const auto& entry : fs::directory_iterator(configs / "models"))
    EXPECT_TRUE(load(configs / "pretrain/quickstart.yaml", {"model.base=" + entry.path().string()})
                    .model.config.contains("model_type"))
        << entry.path();
}

TEST_F(LoadTest, DescribesEveryKey) {
  const std::string keys = describe();
  EXPECT_NE(keys.find("\n  optim.lr=0.001                            peak learning rate (a number above 0)\n"),
            std::string::npos)
      << keys;
  EXPECT_NE(
      keys.find("train.threads=auto                        processor threads (an integer of at least 1 and at most "
                "4096 or auto)\n"),
      std::string::npos);
  EXPECT_NE(keys.find("\n\noptim                                       how weights move\n"), std::string::npos);
  EXPECT_NE(keys.find("data.train.0.weight=1.0"), std::string::npos);
}

}  // namespace
}  // namespace cairn::config
