#include "checkpoints/shared_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <thread>

#include "checkpoints/strict_json.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::milliseconds(5);  // how often the first writer looks for the others' word

}  // namespace

std::vector<size_t> share_out(const std::vector<uint64_t>& bytes, const std::vector<uint64_t>& loads) {
  const size_t writers = loads.size();
  uint64_t left = std::accumulate(bytes.begin(), bytes.end(), uint64_t{0}) +
                  std::accumulate(loads.begin(), loads.end(), uint64_t{0});
  std::vector<size_t> cuts = {0};
  for (size_t r = 0; r + 1 < writers; ++r) {
    // Of what is left, loads included, each writer still to come has a fair part.
    const uint64_t fair = left / (writers - r);
    uint64_t mine = loads[r];
    size_t next = cuts.back();
    while (next < bytes.size() && mine + bytes[next] / 2 <= fair) mine += bytes[next++];
    left -= mine;
    cuts.push_back(next);
  }
  cuts.push_back(bytes.size());
  return cuts;
}

SharedFolder::SharedFolder(fs::path target, Writer writer)
    : writer_(std::move(writer)), folder_(std::move(target), writer_.attempt) {
  if (writer_.rank != 0) folder_.release();
}

SharedFolder::~SharedFolder() {
  if (done_ || writer_.rank == 0) return;
  try {
    leave_word({{"failed", true}});
  } catch (const std::exception&) {
    // The first writer's time limit will tell.
  }
}

fs::path SharedFolder::word_of(int rank) const { return folder_.temporary() / fmt::format(".done-{}.json", rank); }

void SharedFolder::write_tensors(const std::string& stem, const std::string& path,
                                 std::span<const TensorPiece> tensors) {
  std::vector<TensorView> views;
  for (const TensorPiece& tensor : tensors) {
    views.push_back(tensor.view);
    if (!tensor.is_whole()) views.back().name = piece_name(tensor.view.name, tensor.first_index);
    stored_.push_back({stem, path, views.back().name, tensor.view.bytes(), static_cast<uint64_t>(tensor.view.numel()),
                       tensor.whole, !tensor.is_whole()});
  }
  folder_.write_safetensors(path, views);
}

void SharedFolder::leave_word(ordered_json word) {
  const fs::path hidden =
      folder_.temporary().parent_path() / fmt::format("{}done-{}-{}", kTemporaryPrefix, writer_.attempt, writer_.rank);
  // Written elsewhere and renamed: the first writer reads all of it or does not see it.
  FileWriter file(hidden);
  file.write(word.dump());
  file.finish();
  fs::rename(hidden, word_of(writer_.rank));
}

bool SharedFolder::take_up(int rank) {
  const fs::path path = word_of(rank);
  if (!fs::exists(path)) return false;
  const ordered_json word = parse_strict(read_file(path));
  if (word.contains("failed"))
    throw std::runtime_error(
        fmt::format("{} is not committed: rank {} could not write its files; look at what it printed",
                    folder_.target().string(), rank));
  for (const auto& f : word.at("files")) {
    FileEntry entry{f.at("path").get<std::string>(), f.at("size").get<uint64_t>(), f.at("xxh3_128").get<std::string>()};
    std::error_code error;
    if (const uint64_t size = fs::file_size(folder_.temporary() / entry.path, error); error || size != entry.size)
      throw std::runtime_error(fmt::format("{}: rank {} wrote {} bytes, here are {}: is this one file system?",
                                           (folder_.temporary() / entry.path).string(), rank, entry.size,
                                           error ? error.message() : fmt::format("{}", size)));
    folder_.adopt(std::move(entry));
  }
  for (const auto& t : word.at("tensors"))
    stored_.push_back({t.at("stem").get<std::string>(), t.at("path").get<std::string>(),
                       t.at("name").get<std::string>(), t.at("bytes").get<uint64_t>(), t.at("numel").get<uint64_t>(),
                       t.at("whole").get<std::vector<int64_t>>(), t.at("piece").get<bool>()});
  fs::remove(path);
  return true;
}

void SharedFolder::write_index(const std::string& stem) {
  const std::string whole = stem + ".safetensors";
  nlohmann::json map = nlohmann::json::object(), pieces = nlohmann::json::object();
  uint64_t bytes = 0, numel = 0;
  bool several = false;
  for (const Stored& t : stored_) {
    if (t.stem != stem) continue;
    several = several || t.path != whole;
    if (map.contains(t.name))
      throw std::logic_error(fmt::format("{}: two writers wrote tensor '{}'", folder_.target().string(), t.name));
    map[t.name] = fs::path(t.path).filename().string();
    if (t.piece) pieces[whole_name(t.name).first] = t.whole;
    bytes += t.bytes;
    numel += t.numel;
  }
  if (!several) return;
  nlohmann::json index = {{"metadata", {{"total_size", bytes}, {"total_parameters", numel}}}, {"weight_map", map}};
  if (!pieces.empty()) index["pieces"] = pieces;
  folder_.write(whole + ".index.json", index.dump(2) + "\n");
}

void SharedFolder::commit(const ordered_json& about, std::chrono::milliseconds limit,
                          const std::function<void()>& check) {
  if (writer_.rank != 0) {
    ordered_json word = {{"files", ordered_json::array()}, {"tensors", ordered_json::array()}};
    for (const FileEntry& f : folder_.files())
      word["files"].push_back({{"path", f.path}, {"size", f.size}, {"xxh3_128", f.xxh3}});
    for (const Stored& t : stored_)
      word["tensors"].push_back({{"stem", t.stem},
                                 {"path", t.path},
                                 {"name", t.name},
                                 {"bytes", t.bytes},
                                 {"numel", t.numel},
                                 {"whole", t.whole},
                                 {"piece", t.piece}});
    leave_word(std::move(word));
    done_ = true;
    return;
  }
  const auto begin = Clock::now();
  std::vector<int> missing(writer_.count - 1);
  std::iota(missing.begin(), missing.end(), 1);
  while (true) {
    std::erase_if(missing, [&](int rank) { return take_up(rank); });
    if (missing.empty()) break;
    if (check) check();
    if (Clock::now() - begin > limit)
      throw std::runtime_error(
          fmt::format("{} is not committed: after {:.0f} s rank(s) {} have not written their files; every rank has to "
                      "see the run's folder on one file system",
                      folder_.target().string(), limit.count() / 1e3, fmt::join(missing, ", ")));
    std::this_thread::sleep_for(kLook);
  }
  std::set<std::string> stems;
  for (const Stored& t : stored_) stems.insert(t.stem);
  for (const std::string& stem : stems) write_index(stem);
  folder_.commit(about);
  done_ = true;
}

}  // namespace cairn::checkpoints
