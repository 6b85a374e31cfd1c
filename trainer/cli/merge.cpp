#include "checkpoints/analysis/merge.h"

#include "checkpoints/file.h"
#include "checkpoints/manifest.h"
#include "trainer/address.h"
#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::vector<std::string> models;
  std::string out, base, dtype;
  checkpoints::MergeSettings settings;
  bool json = false;
  int threads = 0;
};

struct OutputType {
  const char* name;  // config.json: dtype
  checkpoints::DType type;
};
constexpr OutputType kTypes[] = {{"float32", checkpoints::DType::F32},
                                 {"bfloat16", checkpoints::DType::BF16},
                                 {"float16", checkpoints::DType::F16},
                                 {"float64", checkpoints::DType::F64}};

std::string methods_help() {
  std::string text = "\nMethods:\n";
  for (const auto& method : checkpoints::merge_methods()) {
    text += fmt::format("  {:<16} {}", method.name, method.help);
    if (!method.options.empty()) {
      text += " [";
      for (const std::string& option : method.options)
        text += fmt::format("{}--{}", &option == &method.options.front() ? "" : " ", option);
      text += method.base ? " --base]" : "]";
    }
    text += "\n";
  }
  return text;
}

std::string model_type(const Located& model) {
  return read_model_config(model.folder.string()).value("model_type", "");
}

// WSM's weights are those of evenly spaced states.
void warn_of_uneven_steps(const checkpoints::MergeSettings& s, const std::vector<Located>& models, Console& console) {
  if (s.method != "wsm") return;
  const size_t first = models.size() - s.last.value_or(models.size());
  for (size_t i = first + 2; i < models.size(); ++i) {
    if (!models[i].step || !models[i - 1].step || !models[i - 2].step) return;
    if (*models[i].step - *models[i - 1].step != *models[i - 1].step - *models[i - 2].step) {
      console.warn(
          fmt::format("wsm: the steps {}, {}, {} are not evenly spaced; the weights are those of evenly spaced ones",
                      *models[i - 2].step, *models[i - 1].step, *models[i].step));
      return;
    }
  }
}

Json settings_json(const checkpoints::MergeSettings& s) {
  Json json{{"method", s.method}};
  if (!s.weights.empty()) json["weights"] = s.weights;
  const auto put = [&](const char* key, const auto& value) {
    if (value) json[key] = *value;
  };
  put("normalize", s.normalize);
  put("decay", s.decay);
  put("last", s.last);
  put("schedule", s.schedule);
  put("t", s.t);
  put("density", s.density);
  put("lambda", s.lambda);
  put("seed", s.seed);
  return json;
}

int run_merge(const Options& o) {
  set_threads(o.threads);
  Console console(o.json);
  std::optional<checkpoints::DType> dtype;
  for (const OutputType& type : kTypes)
    if (o.dtype == type.name) dtype = type.type;
  if (fs::exists(o.out))
    throw std::runtime_error(fmt::format("{}: is there already; a merge makes a new folder", o.out));

  std::vector<Located> located;
  for (const std::string& model : o.models)
    for (Located& one : locate_set(model)) located.push_back(std::move(one));
  std::optional<Located> base;
  if (!o.base.empty()) base = locate(o.base);
  const auto& method = checkpoints::check_merge(o.settings, located.size(), base.has_value());
  warn_of_uneven_steps(o.settings, located, console);

  // Config and tokenizer are the base's; without one the first model's.
  const Located& pattern = base ? *base : located.front();
  const std::string type = model_type(pattern);
  std::vector<checkpoints::MergeInput> inputs;
  for (const Located& one : located) {
    if (model_type(one) != type)
      throw std::runtime_error(fmt::format("{} is a {}, but {} is a {}: models of one family alone can be merged",
                                           one.address, model_type(one), pattern.address, type));
    inputs.push_back({one.address, open_weights(one.folder)});
  }
  std::optional<checkpoints::MergeInput> base_input;
  if (base) base_input.emplace(checkpoints::MergeInput{base->address, open_weights(base->folder)});

  fs::path target = fs::absolute(o.out).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();
  fs::create_directories(target.parent_path());
  checkpoints::FolderCommit commit(target);
  const auto merged = checkpoints::merge(
      o.settings, inputs, base_input ? &*base_input : nullptr, dtype, commit.temporary(),
      [&](size_t done, size_t all) { console.progress(fmt::format("merging: {} of {} tensors", done, all)); });
  commit.write_model(merged.views());
  Json config = read_model_config(pattern.folder.string());
  if (dtype) {
    config.erase("torch_dtype");
    config["dtype"] = o.dtype;
  }
  commit.write("config.json", config.dump(2) + "\n");
  write_companions(pattern.folder, commit, /*with_config=*/false);

  Json about{{"kind", "merge"}, {"merge", settings_json(o.settings)}};
  const auto coefficients =
      method.coefficients ? method.coefficients(o.settings, located.size()) : std::vector<double>();
  for (size_t i = 0; i < located.size(); ++i) {
    Json model{{"address", located[i].address}};
    if (located[i].step) model["step"] = *located[i].step;
    if (!coefficients.empty()) model["coefficient"] = coefficients[i];
    about["merge"]["models"].push_back(model);
  }
  if (base) about["merge"]["base"] = base->address;
  const auto manifest = commit.commit(about);
  int64_t parameters = 0;
  for (const auto& view : merged.views()) parameters += view.numel();
  if (o.json) {
    fmt::print("{}\n", Json{{"out", target.string()},
                            {"method", o.settings.method},
                            {"models", about["merge"]["models"]},
                            {"tensors", merged.views().size()},
                            {"parameters", parameters},
                            {"bytes", manifest.bytes()}}
                           .dump());
  } else {
    console.line(fmt::format("{} of {} models: {} parameters in {} tensors -> {}", o.settings.method, located.size(),
                             count(parameters), merged.views().size(), target.string()));
  }
  return 0;
}

}  // namespace

Action merge_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  auto& s = o->settings;
  command.footer(methods_help());
  command.add_option("models", o->models, "addresses, folders, or sets (RUN@A:B:STRIDE), oldest first")->required();
  command.add_option("--out", o->out, "the new model's folder")->required();
  command.add_option("--method", s.method, "see below (default: uniform)");
  command.add_option("--base", o->base, "the model that the others began from");
  command.add_option("--weights", s.weights, "one number a model: 1,0.5,2")->allow_extra_args(false)->delimiter(',');
  command.add_option("--normalize", s.normalize, "true or false: divide by the sum of the weights");
  command.add_option("--decay", s.decay, "of the moving average");
  command.add_option("--last", s.last, "only the last K models");
  command.add_option("--schedule", s.schedule, "linear, cosine or 1-sqrt");
  command.add_option("--t", s.t, "0: the first model, 1: the second");
  command.add_option("--density", s.density, "share of each difference that is kept");
  command.add_option("--lambda", s.lambda, "factor of the merged difference");
  command.add_option("--seed", s.seed, "of the random choice");
  command.add_option("--dtype", o->dtype, "float32, bfloat16, float16 or float64 (default: as the first model)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "float64"}));
  add_threads(command, o->threads);
  command.add_flag("--json", o->json, "{\"out\", \"method\", \"models\", \"tensors\", \"parameters\", \"bytes\"}");
  return [o] { return run_merge(*o); };
}

}  // namespace cairn::cli
