// Named numbers of a step which its micro-batches and ranks report in pieces: means, least and greatest values. A piece
// names every number even where it has nothing to say, so all pieces have the same names in the same order.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace cairn {

class Tally {
 public:
  // sum / weight over all pieces. Sums that are not numbers are passed over, their weight too.
  void mean(const std::string& name, double sum, double weight);
  void least(const std::string& name, double value);     // NaN: nothing to say
  void greatest(const std::string& name, double value);  // likewise

  // Adds another piece. Throws std::invalid_argument where a name means two things.
  void add(const Tally& more);

  // What is known; a mean over nothing is left out, so is an extreme of nothing.
  std::map<std::string, double> values() const;
  bool contains(const std::string& name) const { return entries_.contains(name); }

  // Two numbers a name, in the order of the names: what ranks exchange. take() reads such numbers of another rank whose
  // names are the same, and adds them; throws std::invalid_argument where there are more or fewer.
  std::vector<double> numbers() const;
  void take(const std::vector<double>& numbers);

 private:
  enum class Kind { mean, least, greatest };
  struct Entry {
    Kind kind = Kind::mean;
    double value = 0, weight = 0;  // weight 0: nothing yet
  };
  void join(const std::string& name, const Entry& more);
  std::map<std::string, Entry> entries_;
};

}  // namespace cairn
