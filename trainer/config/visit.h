// One visitor a struct: every key with its range or choices and what it means. Reading, checking, writing run.yaml,
// the list of keys and the near matches all come from here. A visitor V has
//   key(name, field, rule, doc)   section(name, struct, doc)   maybe(name, optional struct, doc)
//   list(name, vector of structs, doc)   rest(json)
#pragma once

#include "trainer/config/rl_visit.h"
#include "trainer/config/rules.h"
#include "trainer/config/run_config.h"

namespace cairn::config {

template <class V>
void visit(V& v, SeedOptions& o) {
  v.key("init", o.init, any(), "of the first weights");
  v.key("data", o.data, any(), "of the order of the data");
  v.key("dropout", o.dropout, any(), "of dropout");
  v.key("sample", o.sample, any(), "of generated text");
}

template <class V>
void visit(V& v, InitOptions& o) {
  v.key("name", o.name, any(), "how weights start");
  v.key("std", o.std, above(0), "standard deviation of the weights (null: the model's initializer_range)");
}

template <class V>
void visit(V& v, ModelOptions& o) {
  v.key("from", o.from, any(), "start from these weights: RUN@STEP or a Hugging Face folder (GGUF files are not read)");
  v.section("init", o.init, "initialisation");
  v.key("dropout", o.dropout, from_below(0, 1), "share of activations dropped in training");
  v.rest(o.config);
}

template <class V>
void visit(V& v, SourceOptions& o) {
  v.key("name", o.name, any(), "name in logs and in the data order (default: from the path)");
  v.key("text", o.text, any(), "text: a file, a folder, a glob, or a known name such as foldoc");
  v.key("jsonl", o.jsonl, any(), "JSON lines: a file, a folder or a glob");
  v.key("shards", o.shards, any(), "token ids: a prepared folder, .npy, Megatron's .bin/.idx, headerless files");
  v.key("separator", o.separator, any(), "text: parts the documents of a file (\"\": <|endoftext|>)");
  v.key("field", o.field, any(), "jsonl: the key that holds the text");
  v.key("prompt", o.prompt, any(),
        "jsonl, sft: what an example begins with, as \"Question: {question}\\n\"; read, not learned");
  v.key("completion", o.completion, any(), "jsonl, sft: what follows, as \"{answer}\"; learned");
  v.key("dtype", o.dtype, one_of({"uint8", "uint16", "uint32", "int32", "int64"}).or_auto(),
        "shards: type of an id in a headerless file");
  v.key("weight", o.weight, above(0), "share among the sources, after division by the sum");
}

template <class V>
void visit(V& v, TokenizerTrainOptions& o) {
  v.key("kind", o.kind, one_of({"bpe"}), "byte-level BPE");
  v.key("vocab_size", o.vocab_size, between(257, 1 << 20), "entries, special tokens included");
}

template <class V>
void visit(V& v, TokenizerOptions& o) {
  v.maybe("train", o.train, "train a tokenizer on the training text");
  v.key("file", o.file, any(), "a tokenizer.json, the folder that holds it, or a GGUF file");
  v.key("bytes", o.bytes, any(), "bytes are the tokens");
}

template <class V>
void visit(V& v, DataOptions& o) {
  v.list("train", o.train, "sources to train on");
  v.list("validation", o.validation, "named validation sets");
  v.key("validation_fraction", o.validation_fraction, between(0, 0.5),
        "share of the training documents held out, by hash; of few documents the end of the longest");
  v.section("tokenizer", o.tokenizer, "one of train, file, bytes");
  v.key("context", o.context, between(1, 1 << 24), "tokens of a sequence");
  v.key("mask_documents", o.mask_documents, any(), "documents packed together do not see one another");
  v.key("overlong", o.overlong, one_of({"truncate", "drop", "error"}), "sft: examples longer than context");
  v.key("cache", o.cache, any().or_auto(), "folder of tokenised sources");
}

template <class V>
void visit(V& v, ScheduleOptions& o) {
  v.key("name", o.name, one_of({"constant", "linear", "cosine", "wsd", "inverse_sqrt"}), "shape of the learning rate");
  v.key("warmup", o.warmup, at_least(0), "steps from 0 to lr");
  v.key("decay", o.decay, at_least(1),
        "steps of decay (null: linear, cosine: all after the warm-up; wsd: the last tenth)");
  v.key("final", o.final, between(0, 1), "fraction of lr at the end of the decay");
}

template <class V>
void visit(V& v, OptimOptions& o) {
  v.key("name", o.name, one_of({"adamw", "muon", "sgd"}), "the optimizer");
  v.key("lr", o.lr, above(0), "peak learning rate");
  v.key("betas", o.betas, from_below(0, 1), "AdamW: decay of the two moments");
  v.key("eps", o.eps, above(0), "AdamW: added to the root of the second moment");
  v.key("weight_decay", o.weight_decay, at_least(0), "decoupled decay per unit of learning rate");
  v.key("decay_roles", o.decay_roles, one_of({"matrix", "embedding", "head", "norm", "bias", "other"}),
        "parameters that are decayed");
  v.key("momentum", o.momentum, from_below(0, 1), "Muon, SGD");
  v.key("nesterov", o.nesterov, any(), "Muon, SGD");
  v.key("ns_steps", o.ns_steps, between(1, 99), "Muon: Newton-Schulz iterations");
  v.key("adjust_lr_fn", o.adjust_lr_fn, one_of({"original", "match_rms_adamw"}),
        "Muon: learning rate by the matrix's shape");
  v.key("adamw_lr", o.adamw_lr, above(0), "Muon: learning rate of what AdamW updates (null: lr)");
  v.key("clip", o.clip, at_least(0), "largest global gradient norm (0: off)");
  v.key("z_loss", o.z_loss, at_least(0), "coefficient of the squared log-normalizer (0: off)");
  v.key("ema", o.ema, from_below(0, 1), "decay of the averaged weights (0: off)");
  v.section("schedule", o.schedule, "the learning rate over the steps");
}

template <class V>
void visit(V& v, IndexerOptions& o) {
  v.key("mode", o.mode, one_of({"dense", "warmup", "sparse"}),
        "dense: all keys are attended to; warmup: likewise, while the indexer learns from it; sparse: the chosen keys");
  v.key("train", o.train, one_of({"auto", "all", "model", "indexer"}),
        "what learns (auto: dense: model, warmup: indexer, sparse: all)");
  v.key("topk", o.topk, at_least(1), "keys that a query attends to (null: the model's index_topk)");
  v.key("loss_coef", o.loss_coef, above(0), "coefficient of the indexer's loss");
  v.key("lr", o.lr, above(0), "peak learning rate of the indexer (null: optim.lr); the schedule is optim's");
  v.key("clip", o.clip, at_least(0), "largest norm of the indexer's gradient (0: off)");
  v.key("sinks", o.sinks, at_least(0), "the first positions of a document that are always chosen");
  v.key("window", o.window, at_least(0), "the last positions that are always chosen");
}

template <class V>
void visit(V& v, ExpertsOptions& o) {
  v.key("bias_update_speed", o.bias_update_speed, at_least(0),
        "a step moves the routing bias of an expert by this: up below the mean load, down above it (0: off)");
  v.key("sequence_aux_loss", o.sequence_aux_loss, at_least(0),
        "coefficient of the sequence-wise balance loss (0: off)");
  v.key("router_z_loss", o.router_z_loss, at_least(0), "coefficient of the router's squared log-normalizer (0: off)");
  v.key("capacity_factor", o.capacity_factor, at_least(0),
        "of each sequence an expert takes at most this times the even share, the first ones (0: all)");
}

template <class V>
void visit(V& v, SpikeOptions& o) {
  v.key("action", o.action, one_of({"none", "skip", "stop"}), "what a loss spike does to the step");
  v.key("factor", o.factor, above(1), "a spike: loss above this times the median of the window");
  v.key("window", o.window, between(2, 1 << 20), "steps of the median");
}

template <class V>
void visit(V& v, SampleOptions& o) {
  v.key("every", o.every, at_least(0), "steps between samples (0: off)");
  v.key("prompt", o.prompt, any(), "what the sample begins with");
  v.key("tokens", o.tokens, between(1, 1 << 20), "length");
  v.key("temperature", o.temperature, at_least(0), "0: greedy");
}

template <class V>
void visit(V& v, TrainOptions& o) {
  v.key("steps", o.steps, at_least(1), "stop after so many steps");
  v.key("tokens", o.tokens, at_least(1), "stop after so many tokens");
  v.key("epochs", o.epochs, above(0), "stop after so many passes over the data");
  v.key("minutes", o.minutes, above(0), "stop after so much wall time");
  v.key("batch", o.batch, between(1, 1 << 24), "sequences a step, over all ranks");
  v.key("micro_batch", o.micro_batch, between(1, 1 << 24).or_auto(), "sequences at once");
  v.key("lanes", o.lanes, between(1, 1 << 16).or_auto(),
        "order in which gradients add up; data-parallel ranks divide it");
  v.key("threads", o.threads, between(1, 4096).or_auto(), "processor threads");
  v.key("precision", o.precision, one_of({"float32", "bf16-mixed", "bf16"}), "bf16-mixed: float32 master weights");
  v.key("device", o.device, one_of({"auto", "cpu", "cuda"}), "where it runs");
  v.key("kernels", o.kernels, one_of({"fast", "aten", "reference"}),
        "aten: LibTorch's operators instead of hand-written kernels; reference: the plain twins");
  v.key("activation_checkpointing", o.activation_checkpointing, any(), "recompute each block in the backward pass");
  v.key("mtp_loss_scaling_factor", o.mtp_loss_scaling_factor, above(0),
        "weight of the mean loss of the modules that predict further tokens (null: 0.1 where the model has some)");
  v.key("on_nonfinite", o.on_nonfinite, one_of({"stop", "skip"}),
        "loss or gradients not finite: stop, or skip the update");
  v.section("on_spike", o.on_spike, "loss spikes");
  v.key("log_every", o.log_every, at_least(1), "steps between console lines");
  v.section("sample", o.sample, "text generated now and then");
}

template <class V>
void visit(V& v, KeepOptions& o) {
  v.key("last", o.last, at_least(1), "the newest N");
  v.key("every", o.every, at_least(0), "those at multiples of it (0: none)");
  v.key("best", o.best, any(), "the one with the lowest validation loss");
}

template <class V>
void visit(V& v, CheckpointOptions& o) {
  v.key("every", o.every, at_least(0), "steps between checkpoints (0: off)");
  v.key("log_spaced", o.log_spaced, any(), "also at steps 0, 1, 2, 4, 8, ...");
  v.key("at", o.at, at_least(0), "also at these steps");
  v.key("at_end", o.at_end, any(), "also after the last step");
  v.key("on_event", o.on_event, any(), "also at a step with an event: a loss spike, a skipped update");
  v.section("keep", o.keep, "all, or a rule {last, every, best}");
  v.key("async", o.async, any(), "write while training goes on");
  v.key("digest_every", o.digest_every, at_least(1),
        "steps between digests of the state in the journal; a step that is stored, and the last one, always has one");
}

template <class V>
void visit(V& v, TrajectoryOptions& o) {
  v.key("every", o.every, at_least(0), "steps between stored weights (0: off)");
  v.key("log_spaced", o.log_spaced, any(), "also at steps 0, 1, 2, 4, 8, ...");
  v.key("at", o.at, at_least(0), "also at these steps");
  v.key("dtype", o.dtype, one_of({"bfloat16", "float32"}), "of the stored weights");
  v.key("codec", o.codec, one_of({"plain", "zstd", "delta"}),
        "plain: any HDF5 reads it; zstd: with the registered filter; delta: differences to the stored step before");
  v.key("tensors", o.tensors, any(), "names or patterns of names (*, ?) of the tensors that are stored");
}

template <class V>
void visit(V& v, EvalOptions& o) {
  v.key("every", o.every, at_least(0), "steps between validations (0: at the end alone)");
  v.key("sequences", o.sequences, between(1, 1 << 24), "of each validation set");
}

template <class V>
void visit(V& v, ParallelOptions& o) {
  v.key("data", o.data, between(1, 1 << 16).or_auto(), "data-parallel ranks");
  v.key("zero", o.zero, between(0, 1), "1: optimizer state sharded over the ranks");
}

template <class V>
void visit(V& v, MetricsOptions& o) {
  v.key("tensorboard", o.tensorboard, any(), "event files beside the journal");
}

// `stages` is read and written apart (stages.h): each is laid over the finished sections.
template <class V>
void visit(V& v, RunConfig& o) {
  v.key("objective", o.objective, any(), "what is trained");
  v.section("seed", o.seed, "a number, or {init, data, dropout, sample}");
  v.section("model", o.model, "base: FILE, or Hugging Face config.json keys, or from: ADDRESS");
  v.section("data", o.data, "what is read");
  v.section("optim", o.optim, "how weights move");
  v.section("indexer", o.indexer, "sparse attention: what the indexer does and learns");
  v.section("experts", o.experts, "mixtures of experts: how their load is kept even");
  v.section("train", o.train, "the loop");
  v.section("checkpoints", o.checkpoints, "what is kept");
  v.section("trajectory", o.trajectory, "weights of many steps in one file");
  v.section("eval", o.eval, "validation");
  v.section("parallel", o.parallel, "several processes");
  v.section("metrics", o.metrics, "where numbers go");
  v.section("rl", o.rl, "objective grpo: GRPOConfig's settings");
  v.section("rollout", o.rollout, "objective grpo: the engine that samples");
  v.section("task", o.task, "objective grpo: what is asked");
  v.list("rewards", o.rewards, "objective grpo: how answers are judged");
}

}  // namespace cairn::config
