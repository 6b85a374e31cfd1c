// A model's weights by name: leaves of the autograd graph, several of which may be stacked into one product's matrix.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <unordered_map>
#include <vector>

namespace cairn::models {

// What a parameter is, for initialisation, decay groups and optimizers that treat matrices apart.
enum class Role { matrix, embedding, head, norm, bias };

// Parameters that train together: a group has a learning rate, a gradient norm and a clip of its own.
enum class Group { model, indexer };
inline constexpr Group kGroups[] = {Group::model, Group::indexer};
const char* group_name(Group group);

// How a parameter starts. `normal`: standard deviation `std`; `constant`: every element `value`; `log_uniform`: the
// logarithm of a number drawn evenly from `low` to `high`.
struct Init {
  enum class Kind { normal, constant, log_uniform } kind = Kind::constant;
  double value = 0;  // the standard deviation, the constant, or `low`
  double high = 0;
  static Init normal(double std) { return {Kind::normal, std}; }
  static Init constant(double value) { return {Kind::constant, value}; }
  static Init log_uniform(double low, double high) { return {Kind::log_uniform, low, high}; }
};

// One named parameter: rows [first_row, first_row + rows) of a leaf. Views are made on demand, since a leaf's storage
// moves when the set is flattened.
struct Parameter {
  std::string name;
  Role role;
  Init init;
  at::Tensor leaf;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t offset = 0;  // of its first element in the flat buffer, elements
  Group group = Group::model;

  at::Tensor value() const;  // detached view, shape as on disk: [rows, ...]
  at::Tensor grad() const;   // view of the leaf's gradient; undefined where the leaf has none
  int64_t numel() const { return leaf.numel() / leaf.size(0) * rows; }
};

// A tensor of the state that no optimizer moves (the routing bias): float32 whatever the weights are.
struct Buffer {
  std::string name;
  at::Tensor tensor;
  double value = 0;  // every element at the start
};

// The weights of one model. Layers add theirs while they are built; then flatten() lays all of them into one buffer.
class Parameters {
 public:
  struct Part {
    std::string name;
    int64_t rows;
  };

  // A leaf [shape...] holding one parameter.
  at::Tensor add(const std::string& name, std::vector<int64_t> shape, Role role, Init init);
  // A leaf [sum of rows, columns] (columns 0: a vector) whose row ranges are parameters of their own: q, k, v in one
  // product.
  at::Tensor stack(const std::vector<Part>& parts, int64_t columns, Role role, Init init);

  // A buffer [shape...]; the tensor is the live one, on the device from flatten() on.
  at::Tensor add_buffer(const std::string& name, std::vector<int64_t> shape, double value);

  // What is added in the life of one belongs to `group`.
  class GroupScope {
   public:
    GroupScope(Parameters& parameters, Group group) : parameters_(parameters), before_(parameters.group_) {
      parameters_.group_ = group;
    }
    ~GroupScope() { parameters_.group_ = before_; }
    GroupScope(const GroupScope&) = delete;
    GroupScope& operator=(const GroupScope&) = delete;

   private:
    Parameters& parameters_;
    Group before_;
  };

  // Moves every leaf into one contiguous buffer of `dtype` (group by group; matrices first, then embeddings, head,
  // norms and biases, each in order of registration), uninitialised. Groups begin on multiples of kGroupAlignment,
  // between them lie zeros. Call once, after the model is built.
  static constexpr int64_t kGroupAlignment = 4096;
  void flatten(at::ScalarType dtype, at::Device device);
  // Gives every leaf that requires a gradient a slice of `flat_grad` [flat().numel()], of the flat buffer's dtype, as
  // its .grad: backward passes add into it.
  void bind_gradients(const at::Tensor& flat_grad);

  // Draws every parameter from (seed, name, index): independent of order, sharding and threads.
  void initialise(uint64_t seed);

  const std::vector<Parameter>& all() const { return parameters_; }
  const std::vector<Buffer>& buffers() const { return buffers_; }
  const Buffer& buffer(const std::string& name) const;  // throws like at()
  // Groups that have parameters, and where in the flat buffer each begins and ends.
  struct Range {
    Group group;
    int64_t begin, end;
  };
  const std::vector<Range>& groups() const { return ranges_; }
  // Throws std::out_of_range naming the parameter.
  const Parameter& at(const std::string& name) const;
  at::Tensor flat() const { return flat_; }
  int64_t numel() const { return numel_; }

 private:
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, size_t> by_name_;  // models with experts have thousands
  std::vector<at::Tensor> leaves_;
  std::vector<Role> leaf_roles_;
  std::vector<Group> leaf_groups_;
  std::vector<Buffer> buffers_;
  std::vector<Range> ranges_;
  Group group_ = Group::model;
  std::vector<int64_t> leaf_offsets_;
  at::Tensor flat_;
  int64_t numel_ = 0;
};

}  // namespace cairn::models
