#include "trainer/past_data.h"

#include "trainer/run_files.h"
#include "trainer/setup.h"
#include "trainer/source_order.h"

namespace cairn {

PastData::PastData(std::filesystem::path run) : record_(std::move(run)) {}

const PastData::Opened& PastData::open(std::unique_ptr<Opened>& place, config::RunConfig config) {
  auto data = make_dataset(config, make_tokenizer(config, record_.run()), {});
  check_sources(record_.run(), *data);
  place = std::make_unique<Opened>(Opened{std::move(config), std::move(data)});
  return *place;
}

const PastData::Opened& PastData::now() { return now_ ? *now_ : open(now_, config::load(record_.run() / "run.yaml")); }

const PastData::Opened& PastData::of(int64_t step) {
  const int64_t made = std::min(step, record_.last_step());
  if (made < 1) return now();
  const int64_t until = record_.settings_until(made);
  if (const auto known = chosen_.find(until); known != chosen_.end()) return *known->second;
  config::RunConfig then = record_.settings_at(made);
  const config::RunConfig today = config::load(record_.run() / "run.yaml");
  const bool other = order_change(then, today, std::min(until, record_.last_step())).has_value();
  const Opened& opened = other ? open(past_[until], std::move(then)) : now();
  chosen_[until] = &opened;
  return opened;
}

std::vector<PastData::Stretch> PastData::stretches() {
  std::vector<Stretch> all;
  for (int64_t first = 1; first <= record_.last_step();) {
    const int64_t last = std::min(record_.settings_until(first), record_.last_step());
    const data::Dataset* data = of(first).data.get();
    if (!all.empty() && all.back().data == data)
      all.back().last = last;
    else
      all.push_back({first, last, data});
    first = last + 1;
  }
  return all;
}

}  // namespace cairn
