#include "trainer/report/figures.h"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::report {
namespace {

using Json = nlohmann::ordered_json;

struct CurveFigure {
  const char* curve;  // the journal's key, or eval/*/MEASURE for all sets
  const char* title;
  const char* unit;
  bool log;     // starts with a logarithmic axis where "log y" is on: values of one sign that fall or rise by factors
  bool smooth;  // noisy from step to step
};

// The first row is the page's first plot; training and validation loss share it.
constexpr CurveFigure kFigures[] = {
    {"loss", "Loss", "nats per token", true, true},
    {"eval/*/bits_per_byte", "Validation", "bits per byte", true, false},
    {"grad_norm", "Gradient norm", "L2, before clipping", true, true},
    {"lr", "Learning rate", "", true, false},
    {"accuracy", "Accuracy", "share of next tokens", false, true},
    {"tokens_per_s", "Speed", "tokens per second", false, true},
    {"z_loss", "z-loss", "nats squared per token", true, true},
};
constexpr std::string_view kWithLoss = "eval/*/nll";

bool fits(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name;
  return name.size() >= pattern.size() && name.starts_with(pattern.substr(0, star)) &&
         name.ends_with(pattern.substr(star + 1));
}

// "grad_norm" -> "Gradient norm".
std::string words(const std::string& name) {
  static const std::map<std::string, std::string> kWords = {
      {"grad", "gradient"}, {"cka", "CKA"},         {"rms", "RMS"},       {"kl", "KL"},
      {"ema", "EMA"},       {"hessian", "Hessian"}, {"6sigma", "6 sigma"}};
  std::string out;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('_', begin), name.size());
    const std::string word = name.substr(begin, end - begin);
    const auto known = kWords.find(word);
    out += (out.empty() ? "" : " ") + (known == kWords.end() ? word : known->second);
    begin = end + 1;
  }
  if (!out.empty() && out[0] >= 'a' && out[0] <= 'z') out[0] -= 'a' - 'A';
  return out;
}

std::string id_of(size_t number) { return "figure-" + std::to_string(number + 1); }

void add_curves(Json& figures, std::vector<std::string> names) {
  auto take = [&](std::string_view pattern) {
    Json out = Json::array();
    for (auto name = names.begin(); name != names.end();) {
      if (fits(pattern, *name)) {
        out.push_back(*name);
        name = names.erase(name);
      } else {
        ++name;
      }
    }
    return out;
  };
  auto add = [&](const Json& found, const std::string& title, const char* unit, bool log, bool smooth) {
    if (found.empty()) return;
    figures.push_back({{"id", id_of(figures.size())},
                       {"kind", "curves"},
                       {"title", title},
                       {"unit", unit},
                       {"names", found},
                       {"log", log},
                       {"smooth", smooth}});
  };
  for (const CurveFigure& figure : kFigures) {
    Json found = take(figure.curve);
    if (&figure == &kFigures[0])
      for (const Json& name : take(kWithLoss)) found.push_back(name);
    add(found, figure.title, figure.unit, figure.log, figure.smooth);
  }
  // What the journal has besides: measures of validation by their last word, other numbers by their key.
  while (!names.empty()) {
    const std::string name = names.front();
    if (name.starts_with("eval/")) {
      const std::string measure = name.substr(name.rfind('/') + 1);
      add(take("eval/*/" + measure), "Validation: " + words(measure), "", true, false);
    } else {
      add(take(name), words(name), "", true, true);
    }
  }
}

}  // namespace

Json plan_figures(const Json& runs) {
  Json figures = Json::array();
  std::vector<std::string> names;
  bool timeline = false;
  for (const Json& run : runs) {
    for (const Json& curve : run.value("curves", Json::array())) {
      const auto name = curve.at("name").get<std::string>();
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    for (const char* part : {"checkpoints", "events", "stages"}) timeline |= !run.value(part, Json::array()).empty();
  }
  add_curves(figures, names);
  if (timeline) figures.push_back({{"id", id_of(figures.size())}, {"kind", "timeline"}, {"title", "Time line"}});
  const size_t before = figures.size();
  for (size_t r = 0; r < runs.size(); ++r) {
    const Json& measures = runs[r].at("measures");
    for (size_t m = 0; m < measures.size(); ++m) {
      std::string kind = measures[m].at("kind");
      if (kind == "curves") kind = "measured";
      const std::string title = words(measures[m].at("metric"));
      const auto same = std::find_if(figures.begin() + before, figures.end(), [&](const Json& figure) {
        return figure.at("kind") == kind && figure.at("metric") == measures[m].at("metric") &&
               figure.at("area") == measures[m].at("area");
      });
      const Json of{{"run", r}, {"measure", m}};
      if (same != figures.end()) {
        (*same)["of"].push_back(of);
        continue;
      }
      figures.push_back({{"id", id_of(figures.size())},
                         {"kind", kind},
                         {"title", title},
                         {"metric", measures[m].at("metric")},
                         {"area", measures[m].at("area")},
                         {"of", Json::array({of})}});
    }
  }
  return figures;
}

}  // namespace cairn::report
