#include "trainer/report/report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <chrono>
#include <map>
#include <set>

#include "checkpoints/file.h"
#include "trainer/report/embedded.h"
#include "trainer/report/figures.h"
#include "trainer/report/run_data.h"

namespace cairn::report {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string base64(std::string_view bytes) {
  constexpr const char* kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t k = 0; k < 3; ++k) word = word << 8 | (k < left ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= left ? kDigits[word >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

// JSON that can stand inside <script>: no '<' is left that could end the element or open a comment; bytes that are no
// UTF-8 are replaced.
std::string script_json(const Json& json) {
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string out;
  out.reserve(text.size() + 64);
  for (char c : text) {
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  }
  return out;
}

std::string html_text(const std::string& text) {
  static const std::map<char, const char*> kEntities = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}};
  std::string out;
  for (char c : text) {
    const auto entity = kEntities.find(c);
    out += entity == kEntities.end() ? std::string(1, c) : entity->second;
  }
  return out;
}

// The template with every {{NAME}} replaced; what is put in is not looked at again.
std::string fill(std::string_view page, const std::map<std::string_view, std::string_view>& parts) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t open = page.find("{{", at), close = page.find("}}", open);
    if (open == std::string_view::npos || close == std::string_view::npos) return out.append(page.substr(at));
    out.append(page.substr(at, open - at)).append(parts.at(page.substr(open + 2, close - open - 2)));
    at = close + 2;
  }
}

// Runs of one name in different folders are told apart by as much of their paths as that takes.
void name_apart(Json& runs) {
  std::map<std::string, int> count;
  for (const Json& run : runs) ++count[run.at("name").get<std::string>()];
  for (Json& run : runs)
    if (count[run.at("name").get<std::string>()] > 1) run["name"] = run.at("path");
}

}  // namespace

Report write_report(const std::vector<Shown>& runs, const fs::path& out) {
  const Embedded parts = embedded();
  if (parts.library.empty())
    throw std::runtime_error(
        "this program was built without the plot library that a report's page holds (plotly.min.js of the Python "
        "package plotly): run ./cairn, which installs it, with the network at hand, or install plotly into .venv and "
        "build again");
  Json data{{"made", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                                 fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())))},
            {"library", "plotly.js " + std::string(parts.library_version)},
            {"runs", Json::array()}};
  for (const Shown& run : runs) {
    data["runs"].push_back(read_run(run.folder));
    if (!run.name.empty()) data["runs"].back()["name"] = fs::path(run.name).filename().string();
    if (!run.name.empty()) data["runs"].back()["path"] = run.name;
  }
  name_apart(data["runs"]);
  data["differences"] = differences(data["runs"]);
  data["figures"] = plan_figures(data["runs"]);

  const std::string title =
      runs.size() == 1 ? data["runs"][0]["name"].get<std::string>() : fmt::format("{} runs compared", runs.size());
  // A folder's name may be no UTF-8: through JSON, which replaces what is not.
  const std::string valid = Json::parse(Json(title).dump(-1, ' ', false, Json::error_handler_t::replace));
  const std::string library = base64(parts.library), json = script_json(data), heading = html_text(valid);
  const std::string page =
      fill(parts.html,
           {{"title", heading}, {"css", parts.css}, {"data", json}, {"library", library}, {"scripts", parts.scripts}});
  checkpoints::replace_file(out, page);
  return {.out = out, .bytes = page.size(), .plots = data["figures"].size()};
}

}  // namespace cairn::report
