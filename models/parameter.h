// A model's weights by name: leaves of the autograd graph, several of which may be stacked into one product's matrix.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

namespace cairn::models {

// What a parameter is, for initialisation, decay groups and optimizers that treat matrices apart.
enum class Role { matrix, embedding, head, norm, bias };

// How a parameter starts. `normal`: standard deviation `std`; `constant`: every element `value`.
struct Init {
  enum class Kind { normal, constant } kind = Kind::constant;
  double value = 0;  // the standard deviation, or the constant
  static Init normal(double std) { return {Kind::normal, std}; }
  static Init constant(double value) { return {Kind::constant, value}; }
};

// One named parameter: rows [first_row, first_row + rows) of a leaf. Views are made on demand, since a leaf's storage moves
// when the set is flattened.
struct Parameter {
  std::string name;
  Role role;
  Init init;
  at::Tensor leaf;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t offset = 0;  // of its first element in the flat buffer, elements

  at::Tensor value() const;  // detached view, shape as on disk: [rows, ...]
  at::Tensor grad() const;   // view of the leaf's gradient; undefined where the leaf has none
  int64_t numel() const { return leaf.numel() / leaf.size(0) * rows; }
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
  // A leaf [sum of rows, columns] (columns 0: a vector) whose row ranges are parameters of their own: q, k, v in one product.
  at::Tensor stack(const std::vector<Part>& parts, int64_t columns, Role role, Init init);

  // Moves every leaf into one contiguous buffer of `dtype` (matrices first, then embeddings, head, norms and biases, each in
  // order of registration), uninitialised. Call once, after the model is built.
  void flatten(at::ScalarType dtype, at::Device device);
  // Gives every leaf that requires a gradient a slice of `flat_grad` [flat().numel()], of the flat buffer's dtype, as its .grad:
  // backward passes add into it.
  void bind_gradients(const at::Tensor& flat_grad);

  // Draws every parameter from (seed, name, index): independent of order, sharding and threads.
  void initialise(uint64_t seed);

  const std::vector<Parameter>& all() const { return parameters_; }
  // Throws std::out_of_range naming the parameter.
  const Parameter& at(const std::string& name) const;
  at::Tensor flat() const { return flat_; }
  int64_t numel() const { return numel_; }

 private:
  std::vector<Parameter> parameters_;
  std::vector<at::Tensor> leaves_;
  std::vector<Role> leaf_roles_;
  std::vector<int64_t> leaf_offsets_;
  at::Tensor flat_;
  int64_t numel_ = 0;
};

}  // namespace cairn::models
