#include "trainer/bench/attention.h"
#include "trainer/bench/checkpoint.h"
#include "trainer/bench/decode.h"
#include "trainer/bench/delta.h"
#include "trainer/bench/moe.h"
#include "trainer/bench/replay.h"
#include "trainer/bench/rollout.h"
#include "trainer/bench/sparse_model.h"
#include "trainer/bench/train.h"
#include "trainer/bench/trajectory.h"
#include "trainer/cli/cli.h"
#include "trainer/cli/device_option.h"
#include "trainer/environment.h"

namespace cairn::cli {

Action bench_verb(CLI::App& command) {
  struct Options {
    bench::TrainBenchOptions train;
    bench::DecodeBenchOptions decode;
    bench::CheckpointBenchOptions checkpoint;
    bench::TrajectoryBenchOptions trajectory;
    bench::ReplayBenchOptions replay;
    bench::AttentionBenchOptions attention;
    bench::MoeBenchOptions moe;
    bool whole_model = false, rollouts = false;
    bench::DeltaBenchOptions delta;
    bench::RolloutBenchOptions rollout;
    int threads = 0;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  auto chosen = std::make_shared<std::function<nlohmann::ordered_json()>>();
  command.require_subcommand(1);
  CLI::App* t =
      command.add_subcommand("train", "the training step on random tokens, beside the bare products of the same step");
  t->add_option("--size", o->train.size, "4m, 14m, 135m (default 4m)");
  t->add_option("--steps", o->train.steps, "steps that count (default 15)");
  t->add_option("--lanes", o->train.lanes, "default 1");
  t->add_option("--micro-batches", o->train.micro_batches, "a lane (default 1)");
  t->add_option("--precision", o->train.precision, "float32, bf16-mixed, bf16");
  add_device(*t, o->train.device);
  t->add_option("--kernels", o->train.kernels, "fast, aten (LibTorch's operators alone), reference (the plain twins)")
      ->check(CLI::IsMember({"fast", "aten", "reference"}));
  t->add_flag("!--no-ceiling", o->train.ceiling, "leave the bare products out");
  t->callback([o, chosen] {
    *chosen = [o] {
      device_of_option(o->train.device);  // says why not, or warns; every rank takes its own
      return bench::bench_train(o->train);
    };
  });
  CLI::App* d = command.add_subcommand(
      "decode", "one stream of tokens, greedy, float32, random weights, beside the rate at which memory is read");
  d->add_option("--size", o->decode.size, "4m, 14m, 135m (default 135m)");
  d->add_option("--tokens", o->decode.tokens, "of each round (default 48)");
  d->add_option("--rounds", o->decode.rounds, "default 3");
  d->callback([o, chosen] { *chosen = [o] { return bench::bench_decode(o->decode); }; });
  CLI::App* c = command.add_subcommand(
      "checkpoint", "how long an asynchronous checkpoint keeps the loop, beside one copy of the same bytes");
  c->add_option("--size", o->checkpoint.size, "4m, 14m, 135m (default 14m)");
  c->add_option("--saves", o->checkpoint.saves, "saves that count (default 3)");
  c->add_option("--dir", o->checkpoint.dir, "where to write (default: the folder for temporary files)");
  c->callback([o, chosen] { *chosen = [o] { return bench::bench_checkpoint(o->checkpoint); }; });
  CLI::App* r = command.add_subcommand("replay", "steps replayed against the same steps trained, in turns; the digest");
  r->add_option("--size", o->replay.size, "4m, 14m, 135m (default 14m)");
  r->add_option("--steps", o->replay.steps, "of a round (default 8)")->check(CLI::Range(2, 1000000));
  r->add_option("--rounds", o->replay.rounds, "default 3")->check(CLI::Range(1, 1000));
  r->add_option("--dir", o->replay.dir, "where to write (default: the folder for temporary files)");
  r->callback([o, chosen] { *chosen = [o] { return bench::bench_replay(o->replay); }; });
  CLI::App* w = command.add_subcommand(
      "trajectory", "weights over time: size on the disk against raw, cost in the loop, bytes read for one tensor");
  w->add_option("--text", o->trajectory.text, "what is trained on (default foldoc)");
  w->add_option("--steps", o->trajectory.steps, "of training for the sizes, every 10th stored (default 320)");
  w->add_option("--size", o->trajectory.size, "whose loop is measured: 4m, 14m, 135m (default 14m)");
  w->add_option("--dtype", o->trajectory.dtype, "that the loop stores (default float32)")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  w->add_option("--codec", o->trajectory.codec, "that the loop stores with (default plain)")
      ->check(CLI::IsMember({"plain", "zstd", "delta"}));
  w->add_option("--pairs", o->trajectory.pairs, "of 10 steps with and 10 without; 0: leave the loop out (default 4)");
  w->add_option("--dir", o->trajectory.dir, "where to write (default: the folder for temporary files)");
  w->callback([o, chosen] { *chosen = [o] { return bench::bench_trajectory(o->trajectory); }; });
  CLI::App* a = command.add_subcommand(
      "attention", "the kernels of sparse attention beside LibTorch's causal attention, in turns; the numbers asked");
  a->add_option("--context", o->attention.contexts, "keys of a sequence, several may follow (default 2048 4096 8192)")
      ->check(CLI::Range(1, 1 << 20));
  a->add_option("--topk", o->attention.topk, "keys that a query chooses (default 256)")->check(CLI::Range(1, 1 << 20));
  a->add_option("--rounds", o->attention.rounds, "default 3")->check(CLI::Range(1, 1000));
  a->add_flag("!--no-dense", o->attention.dense, "leave out what grows with the square of the context");
  a->add_flag("--model", o->whole_model,
              "a whole deepseek_v32 of four layers instead, forward and backward, its indexer frozen and learning "
              "(contexts: default 2048 4096 8192 16384)");
  a->callback([o, chosen, a] {
    const bool contexts_given = a->count("--context") > 0;
    *chosen = [o, contexts_given] {
      if (!o->whole_model) return bench::bench_attention(o->attention);
      bench::SparseModelBenchOptions model{.topk = o->attention.topk, .repeat = o->attention.rounds};
      if (contexts_given) model.contexts = o->attention.contexts;
      return bench::bench_sparse_model(model);
    };
  });
  CLI::App* m = command.add_subcommand(
      "moe", "the training step of a mixture of experts, in turns with a dense model of as many active parameters");
  m->add_option("--experts", o->moe.experts, "numbers of experts (default 8 64)")->check(CLI::Range(1, 4096));
  m->add_option("--topk", o->moe.topk, "experts a token goes to (default 4)")->check(CLI::Range(1, 4096));
  m->add_option("--micro-batches", o->moe.micro_batches, "of 8 sequences, a step (default 1)")
      ->check(CLI::Range(1, 1000));
  m->add_option("--steps", o->moe.steps, "pairs of steps that count (default 7)")->check(CLI::Range(1, 1000000));
  m->callback([o, chosen] { *chosen = [o] { return bench::bench_moe(o->moe); }; });
  CLI::App* n = command.add_subcommand(
      "delta", "Gated DeltaNet, forward and backward, the layer alone and a model of four: tokens/s by length");
  n->add_option("--tokens", o->delta.tokens, "lengths of the one sequence (default 1024,16384)")->delimiter(',');
  n->add_option("--rounds", o->delta.rounds, "that count (default 5)");
  n->callback([o, chosen] { *chosen = [o] { return bench::bench_delta(o->delta); }; });
  CLI::App* l = command.add_subcommand("rl", "fine-tuning with rewards: what its parts take");
  l->add_flag(
       "--rollout", o->rollouts,
       "drawing completions: many at once beside the peak of matrix products, and a group that shares its prompt "
       "beside one completion after the other")
      ->required();
  l->add_option("--size", o->rollout.sizes, "4m, 14m, 135m; several may follow (default all)");
  l->add_option("--batch", o->rollout.batch, "sequences decoded together (default 32)");
  l->add_option("--tokens", o->rollout.tokens, "of each completion (default 64)");
  l->add_option("--group", o->rollout.group, "completions of one prompt (default 8)");
  l->add_option("--group-prompt", o->rollout.group_prompt, "its tokens (default 512)");
  l->add_option("--rounds", o->rollout.rounds, "default 3");
  l->callback([o, chosen] { *chosen = [o] { return bench::bench_rollout(o->rollout); }; });
  for (CLI::App* sub : {t, d, c, w, r, a, m, n, l}) {
    sub->add_option("--threads", o->threads, "default: all");
    sub->add_flag("--json", o->json, "one line of JSON");
  }
  return [o, chosen] {
    set_threads(o->threads);
    const auto result = (*chosen)();
    if (o->json) {
      fmt::print("{}\n", result.dump());
    } else {
      for (const auto& [key, value] : result.items()) fmt::print("{:<24} {}\n", key, value.dump());
    }
    return 0;
  };
}

}  // namespace cairn::cli
