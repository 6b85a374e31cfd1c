// loss_type -> loss. To add one: a file in this folder, its name in loss.h, and a line here.
#include "trainer/rl/losses/loss.h"
#include "trainer/rl/names.h"

namespace cairn::rl {

const PolicyLoss& find_policy_loss(const std::string& loss_type) {
  static const std::map<std::string, PolicyLoss> table = {
      {"grpo", grpo()}, {"bnpo", bnpo()},   {"dr_grpo", dr_grpo()}, {"dapo", dapo()}, {"cispo", cispo()},
      {"sapo", sapo()}, {"luspo", luspo()}, {"vespo", vespo()},     {"rloo", rloo()},
  };
  return find_name(table, "loss_type", loss_type);
}

}  // namespace cairn::rl
