// Models made of several: averages over the trail of a run, and the merges of fine-tuned models. One tensor at a time,
// in double; names of options as in the papers and in mergekit.
//
// To add a method: a line in the table of merge.cpp, with its coefficients (a linear combination) or the function of
// one tensor.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

/// What is not set takes the method's default (see MergeMethod::help).
struct MergeSettings {
  std::string method = "uniform";
  std::vector<double> weights;          // one a model
  std::optional<bool> normalize;        // weights are divided by their sum
  std::optional<double> decay;          // ema: in [0, 1)
  std::optional<int64_t> last;          // lawa, wsm: the newest K models
  std::optional<std::string> schedule;  // wsm: linear cosine 1-sqrt
  std::optional<double> t;              // slerp: 0 gives the first model, 1 the second
  std::optional<double> density;        // ties, dare: share of each difference that is kept
  std::optional<double> lambda;         // factor of the merged difference
  std::optional<uint64_t> seed;         // dare
};

/// Of one tensor: out = f(models, base).
using CombineTensor = void (*)(const MergeSettings& settings, std::span<const TensorView> models,
                               const TensorView* base, std::span<double> out);

struct MergeMethod {
  const char* name;
  const char* help;
  std::vector<std::string> options;  // those of MergeSettings that it takes
  size_t least = 1, most = 0;        // models; most 0: any number
  bool base = false;                 // needs a base model
  /// Coefficients of a linear combination of the models, one a model, 0: not read. Null for methods that are none.
  std::vector<double> (*coefficients)(const MergeSettings& settings, size_t models) = nullptr;
  CombineTensor combine = nullptr;
};

const std::vector<MergeMethod>& merge_methods();

/// Throws std::invalid_argument: an unknown method, an option that the method does not take or that is out of its
/// range, too few or too many models, a base that is missing or of no use.
const MergeMethod& check_merge(const MergeSettings& settings, size_t models, bool base);

struct MergeInput {
  std::string name;  // what errors call it
  ModelWeights weights;
};

/// The merged tensors. They lie in a scratch file that vanishes with the object, so memory stays bounded by a few
/// tensors.
class MergedWeights {
 public:
  const std::vector<TensorView>& views() const { return views_; }

 private:
  friend MergedWeights merge(const MergeSettings&, std::span<const MergeInput>, const MergeInput*, std::optional<DType>,
                             const std::filesystem::path&, const std::function<void(size_t, size_t)>&);
  std::vector<TensorView> views_;
  std::shared_ptr<void> scratch_;
};

/// Tensors in the order of the first model (of the base, where there is one), in its types or in `dtype`. Tensors that
/// are not floating must be equal in all models and are copied. `scratch`: a folder with room for the result;
/// `progress(done, tensors)`. Throws std::invalid_argument as check_merge, std::runtime_error where names or shapes do
/// not agree.
MergedWeights merge(const MergeSettings& settings, std::span<const MergeInput> models, const MergeInput* base,
                    std::optional<DType> dtype, const std::filesystem::path& scratch,
                    const std::function<void(size_t, size_t)>& progress = {});

/// The number in [0, 1) that decides whether DARE keeps element `index` of tensor `name` of model `model`: the upper 53
/// bits of mix64(mix64(mix64(seed) ^ mix64(fnv1a64(name) + model)) + index), functions as in FORMATS.md, Digest.
double dare_uniform(uint64_t seed, uint64_t model, const std::string& name, uint64_t index);

}  // namespace cairn::checkpoints
