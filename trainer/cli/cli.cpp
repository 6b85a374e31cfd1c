#include "trainer/cli/cli.h"
namespace cairn::cli {
int run(int argc, char** argv) { auto t = at::randn({64, 64}); auto m = at::mm(t, t); return m.numel() > 0 ? 0 : 1; }
}  // namespace cairn::cli
