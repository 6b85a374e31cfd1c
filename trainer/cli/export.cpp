#include <fnmatch.h>

#include "checkpoints/gguf.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/store.h"
#include "checkpoints/trajectory/reader.h"
#include "checkpoints/trajectory/verify.h"
#include "checkpoints/trajectory/writer.h"
#include "trainer/address.h"
#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {
namespace {

namespace fs = std::filesystem;
namespace trajectory = checkpoints::trajectory;
using Json = nlohmann::ordered_json;

struct Options {
  std::string model, format = "hf", out, dtype, codec = "plain";
  std::vector<std::string> tensors;
  bool json = false;
  bool drop_indexer = false;
  int threads = 0;
};

fs::path target_of(const Options& o) {
  if (fs::exists(o.out))
    throw std::runtime_error(fmt::format("{}: is there already; an export makes a new folder", o.out));
  fs::path target = fs::absolute(o.out).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();
  fs::create_directories(target.parent_path());
  return target;
}

// ---- a folder in the Hugging Face layout ----

bool is_weights(const std::string& file) {
  return file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json");
}

// config.json and weights of the same model without its indexers.
void write_without_indexer(const Located& model, checkpoints::FolderCommit& commit) {
  Json config = read_model_config(model.folder);
  const std::string type = config.value("model_type", "");
  const models::Family& family = models::family(type);
  if (!family.without_indexer) {
    throw std::runtime_error(
        fmt::format("{}: --drop-indexer: a model of type {} has no indexer that could go, expected "
                    "one of deepseek_v32, llama_dsa, qwen3_dsa",
                    model.address, type));
  }
  const models::Family& dense = models::family(family.without_indexer);
  config["model_type"] = dense.model_type;
  config["architectures"] = {dense.architecture};
  for (const char* key : {"index_topk", "index_n_heads", "index_head_dim", "index_hadamard"}) config.erase(key);
  if (type == "deepseek_v32") config.erase("layer_types");  // where each layer says that it has an indexer
  commit.write("config.json", config.dump(2) + "\n");
  const auto weights = open_weights(model.folder);
  std::vector<checkpoints::TensorView> kept;
  for (const std::string& name : weights.names())
    if (name.find(".self_attn.indexer.") == std::string::npos) kept.push_back(weights.get(name));
  commit.write_model(kept, weights.metadata());
}

// A GGUF file as such a folder.
void write_gguf_model(const Located& model, checkpoints::FolderCommit& commit) {
  const auto weights = open_weights(model.folder);
  std::vector<checkpoints::TensorView> views;
  for (const std::string& name : weights.names()) views.push_back(weights.get(name));
  commit.write_model(views);
  write_companions(model.folder, commit, /*with_config=*/true);
}

void copy_model(const Located& model, checkpoints::FolderCommit& commit, bool drop_indexer) {
  for (const auto& entry : fs::directory_iterator(model.folder)) {
    const std::string name = entry.path().filename().string();
    const bool written_anew = drop_indexer && (name == "config.json" || is_weights(name));
    if (entry.is_regular_file() && name != checkpoints::kManifestName && !written_anew) commit.copy(name, entry.path());
  }
}

Json export_model(const Located& model, const fs::path& target, bool drop_indexer) {
  checkpoints::FolderCommit commit(target);
  if (drop_indexer) write_without_indexer(model, commit);
  checkpoints::is_gguf(model.folder) ? write_gguf_model(model, commit) : copy_model(model, commit, drop_indexer);
  Json about{{"kind", "export"}, {"address", model.address}};
  if (model.step) about["step"] = *model.step;
  const auto manifest = commit.commit(about);
  Json made{{"address", model.address}, {"out", target.string()}, {"bytes", manifest.bytes()}};
  if (model.step) made["step"] = *model.step;
  return made;
}

Json export_hf(const Options& o, Console& console) {
  const fs::path target = target_of(o);
  Json models = Json::array();
  if (!names_several(o.model)) {
    models.push_back(export_model(locate(o.model), target, o.drop_indexer));
  } else {
    const auto located = locate_set(o.model);
    fs::create_directories(target);
    for (size_t i = 0; i < located.size(); ++i) {
      console.progress(fmt::format("exporting: {} of {} models", i, located.size()));
      const int64_t step = located[i].step.value_or(static_cast<int64_t>(i));
      models.push_back(export_model(located[i], target / checkpoints::Store::folder_name(step), o.drop_indexer));
    }
  }
  return {{"out", target.string()}, {"format", "hf"}, {"models", models}};
}

// ---- weights over steps in HDF5 ----

bool chosen(const Options& o, const std::string& name) {
  return o.tensors.empty() || std::any_of(o.tensors.begin(), o.tensors.end(), [&](const std::string& pattern) {
           return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
         });
}

trajectory::Format format_of(const Options& o, checkpoints::hdf5::Type stored) {
  trajectory::Format format;
  format.dtype = o.dtype.empty()        ? stored
                 : o.dtype == "float32" ? checkpoints::hdf5::Type::f32
                                        : checkpoints::hdf5::Type::bf16;
  format.codec = *trajectory::codec_from_name(o.codec);
  return format;
}

void require_tensors(const Options& o, const trajectory::Format& format) {
  if (format.tensors.empty())
    throw UsageError(
        fmt::format("--tensors: found {}, which no tensor of {} is called", fmt::join(o.tensors, " "), o.model));
}

// RUN/trajectory (or the folder itself) written anew.
int64_t copy_trajectory(const Options& o, const fs::path& from, const fs::path& to, Console& console) {
  trajectory::Reader reader(from);
  trajectory::Format format = format_of(o, reader.format().dtype);
  std::vector<size_t> tensors;
  for (size_t t = 0; t < reader.format().tensors.size(); ++t) {
    if (!chosen(o, reader.format().tensors[t].name)) continue;
    tensors.push_back(t);
    format.tensors.push_back(reader.format().tensors[t]);
  }
  require_tensors(o, format);
  trajectory::Writer writer(to, format, {.threads = at::get_num_threads()});
  const bool narrow = reader.format().dtype == checkpoints::hdf5::Type::bf16;
  const int64_t width = narrow ? 2 : 4, rows = static_cast<int64_t>(reader.steps().size());
  // A delta is read a key frame at a time: so many rows are held.
  const int64_t block = reader.format().codec == trajectory::Codec::delta ? 16 : 1;
  for (int64_t first = 0; first < rows; first += block) {
    console.progress(fmt::format("exporting: {} of {} steps", first, rows));
    const int64_t count = std::min(block, rows - first);
    std::vector<std::vector<char>> bits;
    for (const size_t t : tensors) {
      bits.emplace_back(reader.format().tensors[t].numel() * width * count);
      reader.read_bits(t, first, count, bits.back().data());
    }
    for (int64_t k = 0; k < count; ++k) {
      std::vector<checkpoints::TensorView> views;
      for (size_t i = 0; i < tensors.size(); ++i) {
        const auto& tensor = format.tensors[i];
        views.push_back({tensor.name, narrow ? checkpoints::DType::BF16 : checkpoints::DType::F32, tensor.shape,
                         bits[i].data() + k * tensor.numel() * width});
      }
      writer.add(reader.steps()[first + k], views);
    }
  }
  writer.seal();
  return rows;
}

int64_t collect_models(const Options& o, const std::vector<Located>& models, const fs::path& to, Console& console) {
  std::unique_ptr<trajectory::Writer> writer;
  for (size_t i = 0; i < models.size(); ++i) {
    console.progress(fmt::format("exporting: {} of {} models", i, models.size()));
    const auto weights = open_weights(models[i].folder);
    std::vector<checkpoints::TensorView> views;
    for (const std::string& name : weights.names())
      if (chosen(o, name)) views.push_back(weights.get(name));
    // Files of one series may order their tensors otherwise.
    std::sort(views.begin(), views.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    if (!writer) {
      trajectory::Format format = format_of(o, checkpoints::hdf5::Type::f32);
      for (const auto& view : views) format.tensors.push_back({view.name, view.shape});
      require_tensors(o, format);
      writer =
          std::make_unique<trajectory::Writer>(to, format, trajectory::WriterOptions{.threads = at::get_num_threads()});
    }
    writer->add(models[i].step.value_or(static_cast<int64_t>(i)), views);
  }
  if (!writer) throw std::runtime_error(fmt::format("{}: no model there", o.model));
  writer->seal();
  return static_cast<int64_t>(models.size());
}

Json export_hdf5(const Options& o, Console& console) {
  const fs::path target = target_of(o);
  const fs::path beside = target.parent_path() / (checkpoints::kTemporaryPrefix + target.filename().string());
  fs::remove_all(beside);
  int64_t steps = 0;
  try {
    const fs::path path(o.model);
    const fs::path inside = trajectory::is_trajectory(path) ? path : path / "trajectory";
    steps = trajectory::is_trajectory(inside) ? copy_trajectory(o, inside, beside, console)
                                              : collect_models(o, locate_set(o.model, true), beside, console);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(beside, ignored);
    throw;
  }
  fs::rename(beside, target);
  checkpoints::sync_folder(target.parent_path());
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(target)) bytes += entry.file_size();
  return {{"out", target.string()}, {"format", "hdf5"}, {"codec", o.codec}, {"steps", steps}, {"bytes", bytes}};
}

struct Format {
  const char* name;
  Json (*write)(const Options&, Console&);
};
constexpr Format kFormats[] = {{"hf", export_hf}, {"hdf5", export_hdf5}};

int run_export(const Options& o) {
  if (o.format == "hf" && (o.codec != "plain" || !o.dtype.empty() || !o.tensors.empty()))
    throw UsageError("--codec, --dtype and --tensors are for --format hdf5; hf copies a model as it is");
  if (o.format != "hf" && o.drop_indexer) throw UsageError("--drop-indexer: expected --format hf, which writes models");
  if (o.format == "gguf") throw UsageError("--format: gguf cannot be written yet, expected hf or hdf5");
  set_threads(o.threads);
  Console console(o.json);
  for (const Format& format : kFormats) {
    if (o.format != format.name) continue;
    const Json made = format.write(o, console);
    if (o.json) {
      fmt::print("{}\n", made.dump());
    } else if (o.format == "hf") {
      for (const Json& model : made.at("models"))
        console.line(
            fmt::format("{} -> {}", model.at("address").get<std::string>(), model.at("out").get<std::string>()));
    } else {
      console.line(fmt::format("{} steps, {}B -> {}", made.at("steps").get<int64_t>(), count(made.at("bytes")),
                               (fs::path(made.at("out").get<std::string>()) / trajectory::kJoinName).string()));
    }
    return 0;
  }
  throw UsageError(fmt::format("--format: found '{}', expected hf or hdf5", o.format));
}

}  // namespace

Action export_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  command
      .add_option("model", o->model,
                  "an address, a model folder, a GGUF file, a set; hdf5: also a run or its trajectory")
      ->required();
  command.add_option("--out", o->out, "the new folder")->required();
  command.add_option("--format", o->format,
                     "hf: what transformers loads (default; a set: one folder a step); hdf5: weights over steps, "
                     "f[\"weights/<name>\"][k] at f[\"steps\"][k] of trajectory.h5");
  command.add_flag("--drop-indexer", o->drop_indexer,
                   "hf: the dense model, without the weights that choose its keys (deepseek_v32: as deepseek_v3, "
                   "llama_dsa: as llama, qwen3_dsa: as qwen3)");
  command.add_option("--codec", o->codec, "hdf5: plain (default), zstd, delta")
      ->check(CLI::IsMember({"plain", "zstd", "delta"}));
  command.add_option("--dtype", o->dtype, "hdf5: float32 or bfloat16 (default: as a trajectory has it, else float32)")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  command.add_option("--tensors", o->tensors, "hdf5: names or patterns of names (default: all)");
  add_threads(command, o->threads);
  command.add_flag("--json", o->json, "{\"out\", \"format\", ...}");
  return [o] { return run_export(*o); };
}

}  // namespace cairn::cli
