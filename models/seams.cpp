#include "models/seams.h"

namespace cairn::models {

const Seams& Seams::none() {
  static const Seams nothing;
  return nothing;
}

}  // namespace cairn::models
