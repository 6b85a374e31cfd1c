#include "trainer/verify.h"

#include <map>

#include "checkpoints/gguf.h"
#include "checkpoints/journal.h"
#include "checkpoints/manifest.h"
#include "checkpoints/store.h"
#include "checkpoints/strict_json.h"
#include "checkpoints/trajectory/verify.h"
#include "models/families/config_reader.h"
#include "trainer/config/run_config.h"
#include "trainer/data/cache.h"
#include "trainer/gguf_model.h"
#include "trainer/model_io.h"
#include "trainer/run_files.h"
#include "trainer/state.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Checked = Verification::Checked;
using Broken = Verification::Broken;

bool has(const fs::path& path, const char* name) { return fs::exists(path / name); }

// What `body` throws is a fault of `path`.
template <class Body>
auto holding(const fs::path& path, Body body) {
  try {
    return body();
  } catch (const Broken&) {
    throw;
  } catch (const std::exception& error) {
    throw Broken{path.string(), error.what()};
  }
}

Json read_json(const fs::path& path) {
  return holding(path, [&] { return checkpoints::parse_strict(checkpoints::read_file(path)); });
}

// ---- models ----

// Every JSON file of a folder parses.
void check_json_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file() && entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) read_json(file);
}

std::vector<Checked> verify_gguf(const fs::path& path) {
  const auto file = holding(path, [&] { return checkpoints::Gguf::open(path); });
  std::vector<Checked> checked = {{path.string(), "GGUF",
                                   fmt::format("version {}, {} entries of metadata, {} tensors: types, shapes, offsets",
                                               file.version(), file.keys().size(), file.tensors().size())}};
  if (file.tensors().empty()) return checked;  // a vocabulary
  const auto unread = std::find_if(file.tensors().begin(), file.tensors().end(),
                                   [](const checkpoints::GgufTensor& t) { return !t.type->to_float; });
  const auto* architecture = file.find("general.architecture");
  const auto& known = gguf_architectures();
  const bool family = architecture && std::any_of(known.begin(), known.end(), [&](const GgufArchitecture& a) {
                        return architecture->text() == a.name;
                      });
  if (!family || unread != file.tensors().end()) {
    checked.push_back({path.string(), "model",
                       family ? fmt::format("tensors of type {} are not read here: they were not compared with the "
                                            "metadata",
                                            unread->type->name)
                              : "of an architecture that is not known here: its tensors were not compared with it"});
    return checked;
  }
  holding(path, [&] { return load_model(path.string()); });
  checked.push_back({path.string(), "model",
                     "names and shapes of the tensors are those that the metadata describe; nothing records their "
                     "digests"});
  return checked;
}

at::ScalarType type_of(const checkpoints::ModelWeights& weights) {
  const auto type = torch_dtype(weights.info(weights.names().at(0)).dtype);
  return at::isFloatingType(type) ? type : at::kFloat;
}

// The digest of the state that a checkpoint folder holds: what State::digest gives for it.
std::string state_digest(const fs::path& folder) {
  const auto model = load_model(folder.string(), type_of(checkpoints::ModelWeights::open(folder)));
  checkpoints::Digest sum = checkpoints::digest_tensors(weight_views(model->parameters()));
  for (const char* name : {"optimizer.safetensors", "optimizer.safetensors.index.json"}) {
    const fs::path path = folder / "training" / name;
    if (!fs::exists(path)) continue;
    const auto rest = checkpoints::ModelWeights::open(path);
    for (const std::string& stored : rest.names()) {
      checkpoints::TensorView view = rest.get(stored);
      int64_t first = 0;
      if (const size_t open = stored.rfind('['); open != std::string::npos && stored.back() == ']') {
        first = std::stoll(stored.substr(open + 1));  // a piece: elements from `first` on
        view.name = stored.substr(0, open);
      }
      sum += checkpoints::digest_tensor(view, first);
    }
    break;
  }
  return sum.hex();
}

std::vector<Checked> verify_weights(const fs::path& path) {
  const auto weights = holding(path, [&] { return checkpoints::ModelWeights::open(path); });
  return {{path.string(), "weights",
           fmt::format("{} tensors in {} file(s): headers, offsets, types", weights.names().size(),
                       weights.files().size())}};
}

std::vector<Checked> verify_model(const fs::path& folder) {
  check_json_files(folder);
  auto checked = verify_weights(folder);
  if (!fs::exists(folder / "config.json")) return checked;
  try {
    load_model(folder.string(), type_of(checkpoints::ModelWeights::open(folder)));
    checked.push_back({(folder / "config.json").string(), "model",
                       "names and shapes of the tensors are those that it describes; nothing records their digests"});
  } catch (const models::ConfigError& error) {
    if (error.key != "model_type") throw Broken{(folder / "config.json").string(), error.what()};
    checked.push_back({(folder / "config.json").string(), "model",
                       "of a family that is not known here: its tensors were not compared with it"});
  } catch (const std::exception& error) {
    throw Broken{folder.string(), error.what()};
  }
  return checked;
}

// ---- checkpoints ----

// `recorded`: the digest of the step in the journal, where there is one.
std::vector<Checked> verify_committed(const fs::path& folder, const std::string& recorded) {
  if (const auto fault = checkpoints::verify_folder(folder))
    throw Broken{(folder / fault->file).string(), fault->message()};
  const checkpoints::Manifest manifest = checkpoints::read_manifest(folder);
  const std::string name = folder.string(), digest = manifest.about.value("digest", "");
  std::string what = fmt::format("{} files, their sizes and digests", manifest.files.size());
  if (const auto step = checkpoints::Store::step_of(folder.filename().string())) {
    const int64_t about = manifest.about.value("step", *step);
    if (about != *step) throw Broken{name, fmt::format("the folder is called step {}, but holds {}", *step, about)};
  }
  if (!recorded.empty() && !digest.empty() && recorded != digest)
    throw Broken{name, fmt::format("its state has digest {}, the journal has {} for that step", digest, recorded)};
  check_json_files(folder);
  const fs::path state = folder / "training" / "state.json";
  if (fs::exists(state)) {
    const Json json = read_json(state);
    if (const int64_t step = json.value("step", int64_t{-1}); step != manifest.about.value("step", step))
      throw Broken{state.string(),
                   fmt::format("it says step {}, the manifest {}", step, manifest.about.at("step").get<int64_t>())};
    if (!digest.empty()) {
      const std::string found = holding(folder, [&] { return state_digest(folder); });
      if (found != digest)
        throw Broken{name,
                     fmt::format("the stored tensors have digest {}, the state that was saved had {}", found, digest)};
      what += ", the digest of the state";
    }
  }
  if (!recorded.empty() && !digest.empty()) what += ", that of the journal";
  std::vector<Checked> checked = {{name, "checkpoint", what}};
  if (!fs::exists(state) && fs::exists(folder / "config.json")) {  // weights alone: an export
    const auto more = verify_model(folder);
    checked.insert(checked.end(), more.begin(), more.end());
  }
  return checked;
}

std::vector<Checked> verify_checkpoint(const fs::path& folder) { return verify_committed(folder, ""); }

// ---- runs ----

// Returns the digest of every step that has one; `last` becomes the step of the last line.
std::map<int64_t, std::string> verify_journal(const fs::path& run, int64_t first, std::vector<Checked>& checked,
                                              int64_t& last) {
  const fs::path path = run / "journal.jsonl";
  const auto index = holding(path, [&] { return checkpoints::index_journal(path); });
  const std::string text = checkpoints::read_file(path);
  if (index.torn) {
    throw Broken{path.string(),
                 fmt::format("line {} (offset {}), the last one, is torn or changed: no newline, or its checksum does "
                             "not fit; `cairn resume` cuts it off",
                             index.lines.size() + 1, index.bytes)};
  }
  std::map<int64_t, std::string> digests;
  int64_t before = first;
  for (size_t i = 0; i < index.lines.size(); ++i) {
    const auto& place = index.lines[i];
    const auto fail = [&](const std::string& problem) {
      throw Broken{path.string(), fmt::format("line {} (offset {}): {}", i + 1, place.offset, problem)};
    };
    if (place.step < before && i > 0) fail(fmt::format("step {} after step {}", place.step, before));
    if (place.step > before + 1) fail(fmt::format("step {} after step {}: steps are missing", place.step, before));
    before = place.step;
    const Json line =
        Json::parse(text.begin() + place.offset, text.begin() + place.offset + place.length, nullptr, false);
    if (!line.is_object()) fail("it is no JSON object");
    const Json digest = line.value("digest", Json());
    if (digest.is_null()) continue;
    if (!digest.is_string()) fail(fmt::format("its digest is {}, expected 32 hexadecimal digits", digest.dump()));
    try {
      checkpoints::Digest::from_hex(digest.get<std::string>());
    } catch (const std::exception& error) {
      fail(error.what());
    }
    digests[place.step] = digest.get<std::string>();
  }
  checked.push_back(
      {path.string(), "journal", fmt::format("{} lines to step {}: checksums, order", index.lines.size(), before)});
  last = std::max(last, before);
  return digests;
}

void verify_settings(const fs::path& run, std::vector<Checked>& checked) {
  const fs::path yaml = run / "run.yaml";
  if (!fs::exists(yaml)) throw Broken{yaml.string(), "it is missing: it makes the folder a run"};
  const config::RunConfig config = holding(yaml, [&] { return config::load(yaml); });
  if (!fs::exists(run / "build.json")) {
    checked.push_back({yaml.string(), "settings", "every key; there is no build.json to compare it with"});
    return;
  }
  const Json build = holding(run / "build.json", [&] { return read_build(run); });
  std::string changes;
  for (const Json& change : changed_settings(run, config)) {
    changes += fmt::format("{}{} is {}, the steps were made with {}", changes.empty() ? "" : "; ",
                           change.at("key").get<std::string>(), change.at("now").dump(), change.at("was").dump());
  }
  const std::string digest = data::digest_hex(checkpoints::read_file(yaml));
  const std::string recorded = build.value("run_yaml", digest);
  if (recorded != digest) {
    throw Broken{yaml.string(), fmt::format("it was changed since the run was last started (XXH3-128 {} expected, {} "
                                            "found){}; `cairn resume` takes a wanted change up",
                                            recorded, digest, changes.empty() ? "" : ": " + changes)};
  }
  const std::string fault = holding(run / "build.json", [&] { return build_fault(run); });
  if (!fault.empty()) throw Broken{(run / "build.json").string(), fault};
  if (!changes.empty()) throw Broken{yaml.string(), changes};
  checked.push_back({yaml.string(), "settings", "every key, as the run was last started"});
  checked.push_back({(run / "build.json").string(), "build", "digest"});
}

std::vector<Checked> verify_trajectory(const fs::path& path) {
  const fs::path folder = fs::is_directory(path) ? path : path.parent_path();
  if (const auto fault = holding(folder, [&] { return checkpoints::trajectory::verify(folder); }))
    throw Broken{(folder / fault->file).string(), fault->message()};
  return {{folder.string(), "trajectory", "sealed segments, their digests, what joins them"}};
}

std::vector<Checked> verify_run(const fs::path& run) {
  std::vector<Checked> checked;
  verify_settings(run, checked);
  const Json parent = read_build(run).value("parent", Json());
  const int64_t first = parent.is_object() ? parent.value("step", int64_t{0}) : 0;
  std::map<int64_t, std::string> digests;
  int64_t last = first;
  const fs::path journal = run / "journal.jsonl";
  if (fs::exists(journal)) digests = verify_journal(run, first, checked, last);
  std::map<int64_t, fs::path> stored;
  if (fs::exists(run / "checkpoints")) {
    for (const auto& entry : fs::directory_iterator(run / "checkpoints"))
      if (const auto step = checkpoints::Store::step_of(entry.path().filename().string())) stored[*step] = entry.path();
  }
  if (!stored.empty() && stored.rbegin()->first > first && !fs::exists(journal)) {
    throw Broken{journal.string(), fmt::format("it is missing: checkpoints up to step {} are stored, and it holds what "
                                               "was recorded of their steps",
                                               stored.rbegin()->first)};
  }
  // The state that a fork begins with may have another optimizer or average than the one that the journal speaks of.
  if (parent.is_object()) digests.erase(first);
  for (const auto& [step, folder] : stored) {
    if (step > last)
      throw Broken{folder.string(),
                   fmt::format("it is stored, but the journal ends at step {}: lines are missing", last)};
    const auto known = digests.find(step);
    const auto more = verify_committed(folder, known == digests.end() ? "" : known->second);
    checked.insert(checked.end(), more.begin(), more.end());
  }
  // The list of the segments stays where they are gone.
  if (checkpoints::trajectory::is_trajectory(run / "trajectory") ||
      has(run / "trajectory", checkpoints::kManifestName)) {
    const auto more = verify_trajectory(run / "trajectory");
    checked.insert(checked.end(), more.begin(), more.end());
  }
  return checked;
}

// ---- kinds ----

bool holds_safetensors(const fs::path& folder) {
  if (!fs::is_directory(folder)) return false;
  return std::any_of(fs::directory_iterator(folder), fs::directory_iterator(),
                     [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
}

bool is_model(const fs::path& folder) {
  return has(folder, checkpoints::kManifestName) || has(folder, "config.json") || holds_safetensors(folder);
}

// The folders of a series of models, one a step.
std::vector<fs::path> series_of(const fs::path& folder) {
  std::vector<fs::path> models;
  if (!fs::is_directory(folder)) return models;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_directory() && !entry.path().filename().string().starts_with('.') && is_model(entry.path()))
      models.push_back(entry.path());
  std::sort(models.begin(), models.end());
  return models;
}

std::vector<Checked> verify_series(const fs::path& folder) {
  std::vector<Checked> checked;
  for (const fs::path& model : series_of(folder)) {
    const auto more = has(model, checkpoints::kManifestName) ? verify_checkpoint(model) : verify_model(model);
    checked.insert(checked.end(), more.begin(), more.end());
  }
  return checked;
}

struct Kind {
  const char* name;
  bool (*detect)(const fs::path& path);
  std::vector<Checked> (*verify)(const fs::path& path);
};

// The first that fits counts.
constexpr Kind kKinds[] = {
    {"a run", [](const fs::path& p) { return has(p, "run.yaml") || has(p, "journal.jsonl") || has(p, "checkpoints"); },
     verify_run},
    {"a trajectory",
     [](const fs::path& p) {
       return checkpoints::trajectory::is_trajectory(fs::is_directory(p) ? p : p.parent_path()) &&
              (fs::is_directory(p) || p.extension() == ".h5");
     },
     verify_trajectory},
    {"a checkpoint",
     [](const fs::path& p) {
       return has(p, checkpoints::kManifestName) ||
              (fs::is_directory(p) &&
               checkpoints::Store::step_of(fs::absolute(p).lexically_normal().filename().string()));
     },
     verify_checkpoint},
    {"a model folder", [](const fs::path& p) { return has(p, "config.json") || holds_safetensors(p); }, verify_model},
    {"a folder of models", [](const fs::path& p) { return !series_of(p).empty(); }, verify_series},
    {"a safetensors file or an index",
     [](const fs::path& p) {
       return p.extension() == ".safetensors" || p.string().ends_with(".safetensors.index.json");
     },
     verify_weights},
    {"a GGUF file", checkpoints::is_gguf, verify_gguf},
};

}  // namespace

Verification verify(const fs::path& path) {
  if (!fs::exists(path)) throw std::invalid_argument(fmt::format("{}: no such file or folder", path.string()));
  const auto kind = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return k.detect(path); });
  if (kind == std::end(kKinds)) {
    std::vector<std::string> names;
    for (const Kind& k : kKinds) names.push_back(k.name);
    throw std::invalid_argument(
        fmt::format("{}: nothing that can be verified: expected {}", path.string(), fmt::join(names, ", ")));
  }
  Verification result;
  try {
    result.checked = kind->verify(path);
  } catch (const Broken& fault) {
    result.fault = fault;
  }
  return result;
}

}  // namespace cairn
