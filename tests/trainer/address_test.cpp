// labels: quick
#include <gtest/gtest.h>

#include <fstream>

#include "checkpoints/file.h"
#include "models/families/family.h"
#include "trainer/address_parts.h"
#include "trainer/model_io.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;

class Address : public ::testing::Test {
 protected:
  Address() {
    std::string pattern = (fs::temp_directory_path() / "cairn-address-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~Address() override { fs::remove_all(folder_); }

  fs::path model(const fs::path& name) {
    models::Decoder decoder(models::decoder_config({{"model_type", "llama"},
                                                    {"hidden_size", 16},
                                                    {"num_hidden_layers", 1},
                                                    {"num_attention_heads", 2},
                                                    {"intermediate_size", 16},
                                                    {"vocab_size", 40},
                                                    {"max_position_embeddings", 16}},
                                                   true));
    decoder.parameters().initialise(1);
    save_model(decoder, (folder_ / name).string());
    return folder_ / name;
  }
  void write(const fs::path& name, const std::string& text) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
  }
  static std::string error_of(const std::function<void()>& call) {
    try {
      call();
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }
  std::vector<std::pair<int64_t, std::string>> set(const std::string& text) {
    std::vector<std::pair<int64_t, std::string>> found;
    for (const Located& located : locate_set(text))
      found.emplace_back(*located.step, fs::relative(located.folder, folder_).string());
    return found;
  }

  fs::path folder_;
};

using Found = std::vector<std::pair<int64_t, std::string>>;

TEST_F(Address, AModelFolderIsItself) {
  const fs::path path = model("a@3");
  EXPECT_EQ(locate(path.string()).folder, path);
  EXPECT_FALSE(locate(path.string()).step);
  EXPECT_FALSE(names_several(path.string()));
  EXPECT_NE(error_of([&] { locate((folder_ / "b@3").string()); }).find("no such model folder, GGUF file or run"),
            std::string::npos);
}

TEST_F(Address, PatternsOfFolders) {
  for (const char* name : {"step10", "step9", "step1000", "step7-old", "other1"}) model(name);
  fs::create_directories(folder_ / "step11");  // no model
  EXPECT_EQ(set((folder_ / "step{N}").string()), (Found{{9, "step9"}, {10, "step10"}, {1000, "step1000"}}));
  EXPECT_EQ(set((folder_ / "*{N}-old").string()), (Found{{7, "step7-old"}}));
  EXPECT_TRUE(names_several((folder_ / "step{N}").string()));
  EXPECT_NE(error_of([&] { set((folder_ / "run{N}").string()); }).find("no model folder"), std::string::npos);
  EXPECT_NE(error_of([&] { set((folder_ / "none/step{N}").string()); }).find("no folder"), std::string::npos);
}

TEST_F(Address, PatternsInsideFolders) {
  model("run/step5/hf");
  model("run/step6/hf");
  EXPECT_EQ(set((folder_ / "run/step{N}/hf").string()), (Found{{5, "run/step5/hf"}, {6, "run/step6/hf"}}));
}

TEST_F(Address, RevisionsInACacheOfTheHub) {
  model("hub/snapshots/aaaa");
  model("hub/snapshots/bbbb");
  write("hub/refs/step1000", "aaaa\n");
  write("hub/refs/step20", "bbbb");
  write("hub/refs/main", "aaaa");
  EXPECT_EQ(set((folder_ / "hub/step{N}").string()), (Found{{20, "hub/snapshots/bbbb"}, {1000, "hub/snapshots/aaaa"}}));
}

TEST_F(Address, TwoFoldersOfOneStepAreRefused) {
  model("step5-a");
  model("step5-b");
  EXPECT_NE(error_of([&] { set((folder_ / "step{N}-*").string()); }).find("both step 5"), std::string::npos);
}

TEST_F(Address, Lists) {
  model("first");
  model("second");
  write("series.yaml", "- {step: 9, path: first}\n- step: 2\n  path: " + (folder_ / "second").string() + "\n");
  EXPECT_EQ(set((folder_ / "series.yaml").string()), (Found{{2, "second"}, {9, "first"}}));
  write("wrong.yaml", "- {step: soon, path: first}\n");
  EXPECT_NE(error_of([&] { set((folder_ / "wrong.yaml").string()); }).find("expected a list of {step, path}"),
            std::string::npos);
}

TEST_F(Address, PickledWeightsSayHowToConvert) {
  const fs::path path = model("pickled");
  fs::rename(path / "model.safetensors", path / "pytorch_model.bin");
  const std::string error = error_of([&] { locate(path.string()); });
  EXPECT_NE(error.find("pickled"), std::string::npos) << error;
  EXPECT_NE(error.find("save_file"), std::string::npos) << error;
}

TEST_F(Address, TheCacheKeepsWhatIsInUse) {
  const fs::path run = folder_ / "run";
  fs::create_directories(run);
  int built = 0;
  const auto build = [&](const fs::path& target) {
    ++built;
    checkpoints::FolderCommit folder(target);
    folder.write("data", std::string(1000, 'x'));
    folder.commit();
  };
  setenv("CAIRN_CACHE_GIB", "0", 1);
  const fs::path one = cached(run, "step-00000001", {}, build);
  EXPECT_EQ(cached(run, "step-00000001", {}, build), one);
  EXPECT_EQ(built, 1);
  cached(run, "step-00000002", {}, build);
  // Both are in use by this process, so neither goes, whatever the limit.
  EXPECT_TRUE(fs::exists(one / "data") && fs::exists(run / "cache" / "step-00000002" / "data"));
  setenv("CAIRN_CACHE_GIB", "much", 1);
  EXPECT_THROW(cache_limit(), std::invalid_argument);
  unsetenv("CAIRN_CACHE_GIB");
  EXPECT_EQ(cache_limit(), uint64_t{4} << 30);
}

// A state that fits the journal no more is built again, also where this very process used it.
TEST_F(Address, TheCacheGivesWhatIsWantedAlone) {
  const fs::path run = folder_ / "run";
  fs::create_directories(run);
  int built = 0;
  const auto state = [&](const std::string& kind, const std::string& key, const std::string& digest) {
    return [&, kind, key, digest](const fs::path& target) {
      ++built;
      checkpoints::FolderCommit folder(target);
      folder.write("data", digest);
      folder.commit({{"kind", kind}, {key, digest}});
    };
  };
  const std::string name = entry_name(7, Part::full), average = entry_name(7, Part::ema);
  EXPECT_EQ(name, "step-00000007");
  const Wanted first{Part::full, "aa"}, second{Part::full, "bb"};
  const fs::path folder = cached(run, name, first, state("full", "digest", "aa"));
  EXPECT_EQ(find_cached(run, name, first), folder);
  EXPECT_EQ(find_cached(run, name, {Part::full, ""}), folder);
  EXPECT_FALSE(find_cached(run, name, {Part::weights, "aa"}));
  EXPECT_FALSE(find_cached(run, name, second));
  EXPECT_FALSE(seems_cached(run, name, second));
  EXPECT_EQ(cached(run, name, second, state("full", "digest", "bb")), folder);
  EXPECT_EQ(checkpoints::read_file(folder / "data"), "bb");
  EXPECT_EQ(built, 2);
  // An average is not the state whose digest it names.
  cached(run, average, {Part::ema, "bb"}, state("ema", "state", "bb"));
  EXPECT_TRUE(find_cached(run, average, {Part::ema, "bb"}));
  EXPECT_FALSE(find_cached(run, average, {Part::ema, "cc"}));
}

TEST_F(Address, ARunThatGoesBackDropsWhatLiesBehind) {
  for (const char* name : {"step-00000003", "step-00000004-ema", "step-00000005", "step-00000005-weights"})
    write(fs::path("run/cache") / name / "data", "x");
  drop_cached_after(folder_ / "run", 4);
  std::set<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder_ / "run/cache"))
    if (const std::string name = entry.path().filename().string(); !name.starts_with('.')) left.insert(name);
  EXPECT_EQ(left, (std::set<std::string>{"step-00000003", "step-00000004-ema"}));
  drop_cached_after(folder_ / "none", 4);  // there need not be a cache
}

}  // namespace
}  // namespace cairn
