#include "trainer/report/measures.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "trainer/metrics/series.h"
#include "trainer/report/curve.h"
#include "trainer/report/place.h"

namespace cairn::report {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using ByStep = std::map<int64_t, const Measurement*>;
using ByName = std::vector<std::pair<std::string, ByStep>>;  // in the order of the file

constexpr size_t kMostCells = 200000;  // of one metric on the page
constexpr size_t kMostColumns = 400;   // of a map
constexpr size_t kMostNames = 48;      // curves, or arrays to choose from
constexpr size_t kMostLines = 12;      // of a spectrum
constexpr size_t kMostIndices = 128;   // of a spectrum or a profile
constexpr size_t kMostRows = 512;      // of a map of layers
constexpr size_t kHeads = 64;          // arrays of layers up to this length are rows of a map

ByName by_name(const std::vector<const Measurement*>& all) {
  ByName out;
  std::map<std::string, size_t> place;
  for (const Measurement* m : all) {
    const auto [at, fresh] = place.try_emplace(m->name, out.size());
    if (fresh) out.emplace_back(m->name, ByStep());
    out[at->second].second[m->step] = m;
  }
  return out;
}

std::string shown(const std::string& name) { return name.empty() ? "model" : name; }

Json numbers(const std::vector<double>& values) {
  Json out = Json::array();
  for (double v : values) out.push_back(shorten(v));
  return out;
}

// n places spread evenly over the logarithm of the index: 1, 2, 3, ... 10, 12, ...
std::vector<size_t> log_places(size_t n, size_t most) {
  if (n <= most) return thin(n, n);
  std::set<size_t> places;
  for (size_t k = 0; k < most; ++k) places.insert(static_cast<size_t>(std::lround(std::pow(n, k / (most - 1.0)))) - 1);
  return {places.begin(), places.end()};
}

bool is_sorted_down(const Measurement& m) {
  for (size_t i = 0; i < m.values.size(); ++i)
    if (!(m.values[i] >= 0) || (i > 0 && m.values[i] > m.values[i - 1])) return false;
  return m.values.size() >= 4;
}

class Metric {
 public:
  Metric(std::string area, std::string name, const std::function<int64_t(int64_t)>& tokens_at,
         std::vector<std::string>& notes)
      : area_(std::move(area)), name_(std::move(name)), tokens_at_(tokens_at), notes_(notes) {}

  std::vector<Json> draw(const std::vector<Measurement>& all) {
    std::vector<const Measurement*> rank[3];
    size_t deeper = 0;
    for (const Measurement& m : all) {
      if (m.shape.size() > 2)
        ++deeper;
      else
        rank[m.shape.size()].push_back(&m);
    }
    if (deeper) note(fmt::format("{} arrays of more than two dimensions are not drawn", deeper));
    numbers_of(rank[0]);
    arrays_of(rank[1]);
    if (!rank[2].empty()) matrices(by_name(rank[2]));
    return std::move(out_);
  }

 private:
  struct Row {
    std::vector<int64_t> key;  // layer, then index
    std::map<int64_t, double> values;
  };
  using Parts = std::map<std::string, std::vector<Row>>;

  void note(const std::string& text) { notes_.push_back(fmt::format("{}/{}.jsonl: {}", area_, name_, text)); }

  Json entry(const char* kind) const { return {{"area", area_}, {"metric", name_}, {"kind", kind}}; }

  // {"steps", "tokens"} of chosen steps; no tokens where one is not known.
  void set_steps(Json& out, const std::vector<int64_t>& steps) const {
    out["steps"] = steps;
    Json tokens = Json::array();
    for (int64_t step : steps) {
      if (const int64_t t = tokens_at_(step); t >= 0)
        tokens.push_back(t);
      else
        return;
    }
    out["tokens"] = tokens;
  }

  // The steps that are kept of all those in `names`.
  template <class Names>
  std::vector<int64_t> choose_steps(const Names& names, size_t most, size_t& every) const {
    std::set<int64_t> all;
    for (const auto& values : names)
      for (const auto& [step, unused] : values) all.insert(step);
    const std::vector<int64_t> sorted(all.begin(), all.end());
    std::vector<int64_t> chosen;
    for (size_t i : thin(sorted.size(), most, &every)) chosen.push_back(sorted[i]);
    return chosen;
  }

  void numbers_of(const std::vector<const Measurement*>& all) {
    Parts parts;
    Json curves = Json::array();
    size_t left_out = 0;
    for (const auto& [name, by_step] : by_name(all)) {
      const Place place = place_of(name);
      if (place.layer >= 0) {
        Row row{.key = {place.layer}};
        row.key.insert(row.key.end(), place.index.begin(), place.index.end());
        for (const auto& [step, m] : by_step) row.values[step] = m->values.empty() ? kMissing : m->values[0];
        parts[place.part].push_back(std::move(row));
      } else if (curves.size() < kMostNames) {
        std::vector<int64_t> steps, tokens;
        std::vector<double> values;
        for (const auto& [step, m] : by_step) {
          steps.push_back(step);
          if (const int64_t t = tokens_at_(step); t >= 0) tokens.push_back(t);
          values.push_back(m->values.empty() ? kMissing : m->values[0]);
        }
        if (tokens.size() != steps.size()) tokens.clear();
        curves.push_back(to_json(make_curve(shown(name), steps, tokens, values)));
      } else {
        ++left_out;
      }
    }
    if (left_out) note(fmt::format("{} of its names are left out of the page", left_out));
    layers(parts);
    if (curves.empty()) return;
    out_.push_back(entry("curves"));
    out_.back()["curves"] = curves;
  }

  void layers(Parts& parts) {
    if (parts.empty()) return;
    size_t rows = 0;
    std::vector<std::map<int64_t, double>> all;
    for (auto& [part, list] : parts) {
      rows += list.size();
      std::sort(list.begin(), list.end(), [](const Row& a, const Row& b) { return a.key < b.key; });
      for (const Row& row : list) all.push_back(row.values);
    }
    Json out = entry("layers");
    size_t every = 1;
    const auto steps = choose_steps(all, std::clamp<size_t>(kMostCells / rows, 20, kMostColumns), every);
    set_steps(out, steps);
    out["every"] = every;
    out["parts"] = Json::array();
    for (const auto& [part, list] : parts) {
      Json labels = Json::array(), values = Json::array();
      for (const Row& row : list) {
        labels.push_back(fmt::format("{}", fmt::join(row.key, ".")));
        std::vector<double> cells;
        for (int64_t step : steps) {
          const auto found = row.values.find(step);
          cells.push_back(found == row.values.end() ? kMissing : found->second);
        }
        values.push_back(numbers(cells));
      }
      out["parts"].push_back({{"part", part}, {"rows", labels}, {"values", values}});
    }
    out_.push_back(std::move(out));
  }

  void arrays_of(const std::vector<const Measurement*>& all) {
    if (all.empty()) return;
    const ByName names = by_name(all);
    size_t longest = 0;
    bool sorted = true, layered = true;
    for (const Measurement* m : all) {
      longest = std::max(longest, m->values.size());
      sorted &= is_sorted_down(*m);
      layered &= place_of(m->name).layer >= 0;
    }
    if (longest == 0) return;
    if (sorted || name_.find("singular") != std::string::npos) return arrays(names, "spectra", longest);
    std::map<std::string, size_t> rows;  // of each part
    for (const auto& [name, unused] : names) rows[place_of(name).part] += longest;
    for (const auto& [part, count] : rows) layered &= count <= kMostRows;
    if (!layered || longest > kHeads) return arrays(names, "profile", longest);
    Parts parts;
    for (const auto& [name, by_step] : names) {
      const Place place = place_of(name);
      for (size_t i = 0; i < longest; ++i) {
        Row row{.key = {place.layer}};
        row.key.insert(row.key.end(), place.index.begin(), place.index.end());
        row.key.push_back(static_cast<int64_t>(i));
        for (const auto& [step, m] : by_step) row.values[step] = i < m->values.size() ? m->values[i] : kMissing;
        parts[place.part].push_back(std::move(row));
      }
    }
    layers(parts);
  }

  // {"names": [{"name", "length", "index", "steps", "lines": one array a step}]}; index counts from 1.
  void arrays(const ByName& names, const char* kind, size_t longest) {
    const bool spectra = kind == std::string_view("spectra");
    const size_t count = std::min(names.size(), kMostNames);
    if (names.size() > count) note(fmt::format("{} of its {} names are on the page", count, names.size()));
    Json out = entry(kind);
    const size_t indices = std::min(longest, kMostIndices);
    const size_t most = spectra ? kMostLines - 1 : std::clamp<size_t>(kMostCells / (indices * count), 10, 200);
    out["names"] = Json::array();
    for (size_t n = 0; n < count; ++n) {
      const auto& [name, by_step] = names[n];
      size_t every = 1, every_index = 1, length = 0;
      for (const auto& [step, m] : by_step) length = std::max(length, m->values.size());
      const auto steps = choose_steps(std::vector<ByStep>{by_step}, most, every);
      const auto index = spectra ? log_places(length, kMostIndices) : thin(length, kMostIndices - 1, &every_index);
      Json one{{"name", shown(name)}, {"length", length}, {"every", every}};
      set_steps(one, steps);
      one["index"] = Json::array();
      for (size_t i : index) one["index"].push_back(i + 1);
      one["lines"] = Json::array();
      for (int64_t step : steps) {
        const Measurement& m = *by_step.at(step);
        std::vector<double> line;
        for (size_t i : index) line.push_back(i < m.values.size() ? m.values[i] : kMissing);
        one["lines"].push_back(numbers(line));
      }
      out["names"].push_back(std::move(one));
    }
    out_.push_back(std::move(out));
  }

  // {"names": [{"name", "rows", "columns", "steps", "matrices": rows of numbers, one matrix a step}]}
  void matrices(const ByName& names) {
    constexpr size_t kMostSide = 96;
    Json out = entry("matrix");
    out["names"] = Json::array();
    const size_t count = std::min(names.size(), kMostNames);
    if (names.size() > count) note(fmt::format("{} of its {} names are on the page", count, names.size()));
    for (size_t n = 0; n < count; ++n) {
      const auto& [name, by_step] = names[n];
      const Measurement& last = *by_step.rbegin()->second;
      const size_t height = last.shape[0], width = last.shape[1];
      size_t every = 1, every_row = 1, every_column = 1;
      const auto rows = thin(height, kMostSide, &every_row), columns = thin(width, kMostSide, &every_column);
      const size_t cells = std::max<size_t>(1, rows.size() * columns.size() * count);
      const auto steps =
          choose_steps(std::vector<ByStep>{by_step}, std::clamp<size_t>(kMostCells / cells, 1, 24), every);
      Json one{{"name", shown(name)}, {"height", height}, {"width", width},
               {"every", every},      {"rows", rows},     {"columns", columns}};
      one["matrices"] = Json::array();
      std::vector<int64_t> kept;
      for (int64_t step : steps) {
        const Measurement& m = *by_step.at(step);
        if (m.shape != last.shape) continue;
        kept.push_back(step);
        Json matrix = Json::array();
        for (size_t r : rows) {
          std::vector<double> line;
          for (size_t c : columns) line.push_back(m.values[r * width + c]);
          matrix.push_back(numbers(line));
        }
        one["matrices"].push_back(std::move(matrix));
      }
      if (kept.size() != steps.size())
        note(fmt::format("{}: of {} steps those with the shape of the last one are drawn", shown(name), steps.size()));
      set_steps(one, kept);
      out["names"].push_back(std::move(one));
    }
    out_.push_back(std::move(out));
  }

  std::string area_, name_;
  const std::function<int64_t(int64_t)>& tokens_at_;
  std::vector<std::string>& notes_;
  std::vector<Json> out_;
};

}  // namespace

std::vector<Json> read_measures(const fs::path& folder, const std::string& area,
                                const std::function<int64_t(int64_t)>& tokens_at, std::vector<std::string>& notes) {
  std::vector<Json> out;
  std::set<std::string> metrics;
  if (fs::is_directory(folder))
    for (const auto& file : fs::directory_iterator(folder))
      if (file.path().extension() == ".jsonl") metrics.insert(file.path().stem().string());
  for (const std::string& metric : metrics) {
    try {
      for (Json& one : Metric(area, metric, tokens_at, notes).draw(read_series(folder, metric)))
        out.push_back(std::move(one));
    } catch (const std::exception& error) {
      notes.push_back(fmt::format("{}/{}.jsonl is not shown: {}", area, metric, error.what()));
    }
  }
  return out;
}

}  // namespace cairn::report
