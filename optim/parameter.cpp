#include "optim/parameter.h"

#include <fmt/format.h>

namespace cairn::optim {
namespace {
constexpr std::pair<Role, const char*> kRoles[] = {{Role::matrix, "matrix"}, {Role::embedding, "embedding"},
                                                   {Role::head, "head"},     {Role::norm, "norm"},
                                                   {Role::bias, "bias"},     {Role::other, "other"}};
}

const char* role_name(Role role) {
  for (const auto& [value, name] : kRoles)
    if (value == role) return name;
  throw std::invalid_argument(fmt::format("optimizer: {} is no role", static_cast<int>(role)));
}

Role role_from_name(std::string_view name) {
  std::string known;
  for (const auto& [value, text] : kRoles) {
    if (name == text) return value;
    known += known.empty() ? text : std::string(", ") + text;
  }
  throw std::invalid_argument(fmt::format("optimizer: unknown role '{}' (there are {})", name, known));
}

}  // namespace cairn::optim
