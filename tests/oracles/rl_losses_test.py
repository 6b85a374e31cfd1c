"""Losses, advantages and divergences of fine-tuning against TRL's trainers on the same numbers: values, gradients, metrics.

A trainer of TRL is made without its constructor, its model and its accelerator replaced by what hands over the
log-probabilities at hand; the methods that compute are its own.

usage: rl_losses_test.py CAIRN_PROGRAM   (loss_driver lies beside it)
"""
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import types
import warnings
from collections import defaultdict, deque

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from harness import CAIRN, main  # noqa: E402
from trl import DPOConfig, GRPOConfig, GRPOTrainer, KTOTrainer, RLOOTrainer  # noqa: E402
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.gkd import GKDTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.experimental.server_distillation import server_distillation_trainer as server  # noqa: E402
from trl.rewards import get_soft_overlong_punishment  # noqa: E402
from trl.trainer.distillation_config import DistillationConfig  # noqa: E402
from trl.trainer.distillation_trainer import _chunked_divergence_loss  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.kto_config import KTOConfig  # noqa: E402

PartialState(cpu=True)
torch.set_num_threads(1)


def drive(cases):
    """The driver's answers to the cases, one each."""
    program = os.path.join(os.path.dirname(os.path.abspath(CAIRN)), "loss_driver")
    with tempfile.TemporaryDirectory(prefix="cairn-test-") as folder:
        request, answer = os.path.join(folder, "request.json"), os.path.join(folder, "answer.json")
        with open(request, "w") as file:
            json.dump({"cases": [plain(case) for case in cases]}, file)
        subprocess.run([program, request, answer], check=True)
        with open(answer) as file:
            return json.load(file)


def plain(value):
    """JSON of nested things that hold tensors; NaN is null."""
    if isinstance(value, torch.Tensor):
        return plain(value.detach().tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def close(got, expected, what, tolerance=2e-6):
    """Within `tolerance` of the largest number: both sides are float32."""
    got = torch.as_tensor(got, dtype=torch.float64)
    expected = torch.as_tensor(expected).detach().to(torch.float64)
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)} beside {tuple(expected.shape)}"
    if got.numel() == 0:
        return
    # Numbers below the floor are what is left of larger ones.
    worst, bound = (got - expected).abs().max().item(), tolerance * max(expected.abs().max().item(), 1e-3 if got.dim() else 0.1)
    assert worst <= bound, f"{what}: differs by {worst}, allowed {bound}\n{got}\n{expected}"


def close_metrics(got, expected, names, what):
    for name in names:
        assert name in expected, f"{what}: TRL has no metric {name}"
        close(got[name], expected[name][-1], f"{what}: metric {name}", 1e-5)


class Accelerator:
    """One process."""
    num_processes, process_index, sync_gradients, device = 1, 0, True, torch.device("cpu")

    def gather(self, x):
        return x.reshape(1) if isinstance(x, torch.Tensor) and x.dim() == 0 else x

    gather_for_metrics = gather

    def reduce(self, x, reduction):
        return x

    def pad_across_processes(self, x, dim, pad_index):
        return x


def bare(kind, **attributes):
    trainer = object.__new__(kind)
    trainer.accelerator = Accelerator()
    trainer.model = types.SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.aux_loss_enabled = False
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def randn(*shape, seed, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# ---- policy losses --------------------------------------------------------------------------------------------------

LENGTHS = [7, 0, 3, 1, 5, 7, 7, 2]


def policy_batch(seed, by_token=False, tools=False):
    B, T = len(LENGTHS), max(LENGTHS)
    mask = (torch.arange(T).unsqueeze(0) < torch.tensor(LENGTHS).unsqueeze(1)).int()
    logprobs = randn(B, T, seed=seed, scale=0.4) - 1.5
    old = logprobs + randn(B, T, seed=seed + 1, scale=0.25)
    batch = {"logprobs": logprobs, "old_logprobs": old, "ref_logprobs": logprobs + randn(B, T, seed=seed + 2, scale=0.4),
             "rollout_logprobs": old + randn(B, T, seed=seed + 3, scale=0.4), "entropies": randn(B, T, seed=seed + 4).abs(), "mask": mask,
             "advantages": randn(B, T, seed=seed + 5) if by_token else randn(B, seed=seed + 5), "truncated": [0, 0, 0, 1, 0, 0, 1, 0]}
    if tools:
        batch["tool_mask"] = torch.ones(B, T, dtype=torch.int)
        batch["tool_mask"][5, 2:4] = 0
        batch["tool_mask"][0, 0] = 0
    return batch


def trl_policy(batch, options, rollout):
    """TRL's loss, its gradients by log-probabilities and entropies, its metrics."""
    config = {f.name: (f.default if f.default is not dataclasses.MISSING else None) for f in dataclasses.fields(GRPOConfig)}
    config.update({key: value for key, value in options.items() if key in config})
    config["steps_per_generation"] = 1
    args = types.SimpleNamespace(**config)
    logprobs, entropies = batch["logprobs"].clone().requires_grad_(), batch["entropies"].clone().requires_grad_()
    trainer = bare(
        GRPOTrainer, args=args, beta=args.beta, loss_type=args.loss_type, importance_sampling_level=args.importance_sampling_level,
        top_entropy_quantile=args.top_entropy_quantile, off_policy_mask_threshold=args.off_policy_mask_threshold, epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high, max_completion_length=args.max_completion_length,
        use_vllm=rollout, vllm_importance_sampling_correction=args.vllm_importance_sampling_correction, current_gradient_accumulation_steps=1,
        entropy_coef=args.entropy_coef, use_adaptive_entropy=False, _entropy_bonus_enabled=args.entropy_coef != 0,
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, entropies, None))
    mask = batch["mask"]
    if options.get("mask_truncated_completions"):
        mask = mask * (1 - torch.tensor(batch["truncated"], dtype=torch.int)).unsqueeze(1)
    inputs = {"prompt_ids": torch.zeros(len(LENGTHS), 1).long(), "prompt_mask": torch.ones(len(LENGTHS), 1).int(),
              "completion_ids": torch.zeros_like(mask).long(), "completion_mask": mask, "advantages": batch["advantages"],
              "old_per_token_logps": batch["old_logprobs"]}
    if args.beta != 0:
        inputs["ref_per_token_logps"] = batch["ref_logprobs"]
    if "tool_mask" in batch:
        inputs["tool_mask"] = batch["tool_mask"] * (mask if options.get("mask_truncated_completions") else 1)
        mask = mask * inputs["tool_mask"]
    inputs["num_items_in_batch"] = mask.sum()
    if rollout:
        inputs["sampling_per_token_logps"] = batch["rollout_logprobs"]
        if args.vllm_importance_sampling_correction:
            inputs["importance_sampling_ratio"] = trl_rollout_weights(batch, args, mask)
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    gradients = torch.autograd.grad(loss, [logprobs, entropies], allow_unused=True)
    return loss, gradients, trainer._metrics["train"]


def trl_rollout_weights(batch, args, mask):
    """Through TRL's own generation step: it hands the ratio to the loss."""
    trainer = scoring_trainer(GRPOTrainer, batch, mask, num_generations=2, use_vllm=True, num_iterations=1,
                              args=types.SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=1, gradient_checkpointing_kwargs=None))
    for name in ("correction", "mode", "clip_max", "clip_min"):
        key = f"vllm_importance_sampling_{name}"
        setattr(trainer, key, getattr(args, key))
    inputs = [{"prompt": "a"} for _ in LENGTHS]
    return GRPOTrainer._generate_and_score_completions(trainer, inputs)["importance_sampling_ratio"]


def scoring_trainer(kind, batch, mask, rewards=None, **attributes):
    """A trainer whose generation and rewards are given: the rest of _generate_and_score_completions is its own."""
    B, T = mask.shape
    rewards = torch.zeros(B, 1) if rewards is None else rewards
    names = [f"reward{i}" for i in range(rewards.size(1))]
    trainer = bare(
        kind, environment_factories=None, environments=None, tools=None, _is_vlm=False, pad_to_multiple_of=None, mask_truncated_completions=False, eos_token_ids=[1],
        _tokenizer=types.SimpleNamespace(pad_token_id=0, eos_token_id=1), reward_weights=torch.ones(rewards.size(1)), reward_funcs=names, reward_func_names=names,
        scale_rewards="group", multi_objective_aggregation="sum_then_normalize", beta=0.0, use_vllm=False, ref_model=True, num_iterations=1, num_generations=2,
        use_transformers_paged=False, _pending_extra_logs={}, _pending_metrics={}, log_multimodal=False, reward_clip_range=None, normalize_advantages=False,
        args=types.SimpleNamespace(per_device_train_batch_size=B, gradient_accumulation_steps=1, steps_per_generation=1, gradient_checkpointing_kwargs=None,
                                   gradient_checkpointing=False),
        _logs={"prompt": deque(), "completion": deque(), "rewards": defaultdict(deque), "advantages": deque(), "extra": defaultdict(deque), "images": deque()})
    for name, value in attributes.items():
        setattr(trainer, name, value)
    trainer.model = Training()

    def generate(prompts):
        sampling = batch["rollout_logprobs"].tolist() if batch and trainer.use_vllm else None
        if kind is RLOOTrainer:
            return [[2]] * B, [[2] * n for n in mask.sum(1).tolist()], ["x"] * B
        # Every row has the full length here; what is not in the mask is a tool's.
        return [[2]] * B, [[2] * T for _ in range(B)], mask.tolist(), ["x"] * B, sampling, {}, None, [[] for _ in range(B)]

    trainer._generate = generate
    trainer._calculate_rewards = lambda *a: rewards
    trainer._get_per_token_logps_and_entropies = lambda model, *a, **k: (batch["ref_logprobs"] if model is True else batch["old_logprobs"], None, None)
    return trainer


class Training(torch.nn.Module):
    """What TRL asks of a model that it only hands on."""

    is_gradient_checkpointing = False


POLICY = [
    ({}, {}),
    ({"epsilon": 0.1, "epsilon_high": 0.28}, {}),
    ({"beta": 0.2}, {}),
    ({"beta": 0.2, "use_bias_correction_kl": False}, {}),
    ({"importance_sampling_level": "sequence"}, {}),
    ({"importance_sampling_level": "sequence", "beta": 0.3}, {}),
    ({"mask_truncated_completions": True, "beta": 0.1}, {}),
    ({"top_entropy_quantile": 0.3, "beta": 0.1}, {}),
    ({"top_entropy_quantile": 0.0}, {}),
    ({"entropy_coef": 0.05}, {}),
    ({"entropy_coef": 0.05, "top_entropy_quantile": 0.2, "mask_truncated_completions": True}, {}),
    ({"off_policy_mask_threshold": 0.05}, {}),
    ({"off_policy_mask_threshold": 0.05}, {"rollout": True}),
    ({}, {"by_token": True}),
    ({"importance_sampling_level": "sequence"}, {"by_token": True}),
    ({"beta": 0.1}, {"tools": True}),
    ({"vllm_importance_sampling_mode": "token_truncate"}, {"rollout": True}),
    ({"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.7, "vllm_importance_sampling_clip_max": 1.3}, {"rollout": True}),
    ({"vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_max": 1.2, "beta": 0.1}, {"rollout": True}),
    ({"vllm_importance_sampling_mode": "sequence_truncate", "vllm_importance_sampling_clip_max": 1.5}, {"rollout": True}),
    ({"vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 1.5}, {"rollout": True, "tools": True}),
    ({"vllm_importance_sampling_correction": False}, {"rollout": True}),
    ({"delta": 1.3}, {}),
    ({"delta": 1.1, "importance_sampling_level": "sequence"}, {}),
    ({"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}, {}),
    ({"vespo_k_pos": 1.0, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": 0.5}, {}),
]
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


def test_policy_losses():
    cases, expected = [], []
    for loss_type in (*CLIPPED, "cispo", "sapo", "vespo"):
        for index, (options, how) in enumerate(POLICY):
            rollout = how.get("rollout", False)
            options = {"loss_type": loss_type, "max_completion_length": 9, **options}
            if loss_type == "cispo":
                options["epsilon_high"] = 1.05
            if "delta" in options and loss_type not in CLIPPED:
                continue
            if loss_type == "vespo" and not options.get("vllm_importance_sampling_mode", "").startswith("token"):
                if rollout and options.get("vllm_importance_sampling_correction", True):
                    continue
                options["vllm_importance_sampling_mode"] = "token_mask"
            batch = policy_batch(seed=100 * index, by_token=how.get("by_token", False), tools=how.get("tools", False))
            expected.append((f"{options} {how}", batch, rollout, trl_policy(batch, options, rollout)))
            case = {"kind": "policy", "options": options, **batch}
            if "tool_mask" in batch:
                case["mask"] = batch["mask"] * case.pop("tool_mask")
            if not rollout:
                del case["rollout_logprobs"]
            cases.append(case)
    assert len(cases) > 170, len(cases)
    seen = set()
    for answer, (what, batch, rollout, (loss, (dlogprobs, dentropies), metrics)) in zip(drive(cases), expected, strict=True):
        assert "error" not in answer, f"{what}: {answer}"
        close(answer["loss"], loss, what + " loss")
        close(answer["dlogprobs"], dlogprobs, what + " gradient")
        if answer["dentropies"] is not None:
            close(answer["dentropies"], dentropies, what + " gradient by entropies")
        else:
            assert dentropies is None or dentropies.abs().max() == 0, what
        names = set(metrics) - {"entropy_coef"}
        assert names <= set(answer["metrics"]), f"{what}: TRL has {names - set(answer['metrics'])} too"
        close_metrics(answer["metrics"], metrics, names, what)
        seen |= names
    assert {"kl", "entropy", "policy_loss", "clip_ratio/low_mean", "clip_ratio/low_min", "clip_ratio/high_mean", "clip_ratio/high_max", "clip_ratio/region_mean",
            "cispo_clip_ratio", "vespo/phi_seq_mean"} <= seen, seen


def test_rollout_metrics():
    batch = policy_batch(seed=5)
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        options = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.4}
        batch["rollout_logprobs"][0, 2] = math.nan
        args = types.SimpleNamespace(vllm_importance_sampling_correction=True, vllm_importance_sampling_clip_min=None, **options)
        trainer = scoring_trainer(GRPOTrainer, batch, batch["mask"], use_vllm=True)
        for key, value in vars(args).items():
            setattr(trainer, key, value)
        GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": "a"} for _ in LENGTHS])
        answer, = drive([{"kind": "policy", "options": options, **batch}])
        names = [name for name in trainer._metrics["train"] if name.startswith("sampling/")]
        assert len(names) == 5, names
        close_metrics(answer["metrics"], trainer._metrics["train"], names, mode)


def test_rloo_loss():
    batch = policy_batch(seed=3)
    # TRL's value of a completion without tokens is a constant, minus its advantage; ours is 0.
    rows = [i for i, length in enumerate(LENGTHS) if length]
    batch = {key: (value if key == "truncated" else value[rows]) for key, value in batch.items()}
    batch["truncated"] = [0] * len(rows)
    cases, expected = [], []
    for epsilon, high in ((0.2, None), (0.1, 0.5), (0.6, 0.9)):
        logprobs = batch["logprobs"].clone().requires_grad_()
        trainer = bare(RLOOTrainer, epsilon_low=epsilon, epsilon_high=epsilon if high is None else high,
                       _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, batch["entropies"], None))
        inputs = {"prompt_ids": torch.zeros(len(rows), 1).long(), "prompt_mask": torch.ones(len(rows), 1).int(), "completion_ids": torch.zeros_like(batch["mask"]).long(),
                  "completion_mask": batch["mask"], "old_logps": (batch["old_logprobs"] * batch["mask"]).sum(1), "advantages": batch["advantages"]}
        loss = RLOOTrainer._compute_loss(trainer, None, inputs)
        expected.append((loss, torch.autograd.grad(loss, logprobs)[0], trainer._metrics["train"]))
        case = {"kind": "policy", "options": {"loss_type": "rloo", "epsilon": epsilon, "epsilon_high": high}, **batch}
        del case["rollout_logprobs"]
        cases.append(case)
    for answer, (loss, gradient, metrics) in zip(drive(cases), expected, strict=True):
        close(answer["loss"], loss, "rloo loss")
        close(answer["dlogprobs"], gradient, "rloo gradient")
        close_metrics(answer["metrics"], metrics, metrics, "rloo")


# ---- advantages -----------------------------------------------------------------------------------------------------

def reward_sets():
    nan = math.nan
    yield "one function", torch.tensor([[1.0], [0], [0], [1], [5], [5], [5], [5]])
    yield "two functions", torch.cat([randn(8, 1, seed=1), 10 * randn(8, 1, seed=2)], 1)
    yield "unscored", torch.tensor([[1.0, nan], [nan, nan], [nan, 2], [4, 1], [nan, nan], [nan, nan], [3, nan], [nan, nan]])
    yield "all equal", torch.full((8, 2), 0.5)


def advantage_of(kind, rewards, batch, **attributes):
    """From TRL's own scoring step."""
    trainer = scoring_trainer(kind, batch, batch["mask"], rewards=rewards.clone(), **attributes)
    out = kind._generate_and_score_completions(trainer, [{"prompt": "a"} for _ in LENGTHS])
    return out["advantages"], trainer._metrics["train"]


def test_advantages():
    batch = policy_batch(seed=9)
    batch["mask"][1, 0] = 1  # RLOO's trainer takes no completion without tokens
    cases, expected = [], []
    for name, rewards in reward_sets():
        functions = rewards.size(1)
        for weights in (None, [0.5, -2.0][:functions]):
            common = {"kind": "advantages", "rewards": rewards, "names": [f"reward{i}" for i in range(functions)]}
            weight = {"reward_weights": torch.tensor(weights or [1.0] * functions)}
            for generations in (2, 4):
                for scale in ("group", "batch", "none"):
                    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
                        options = {"num_generations": generations, "scale_rewards": scale, "multi_objective_aggregation": aggregation, "reward_weights": weights or []}
                        cases.append({**common, "options": options})
                        expected.append((f"grpo, {name}, {options}", advantage_of(GRPOTrainer, rewards, batch, **{**options, **weight})))
                for normalize in (False, True):
                    for beta in (0.0, 0.3):
                        for clip in (None, (-0.5, 2.0)):
                            options = {"advantage_estimator": "rloo", "num_generations": generations, "normalize_advantages": normalize, "reward_weights": weights or []}
                            if clip:
                                options |= {"reward_clip_min": clip[0], "reward_clip_max": clip[1]}
                            cases.append({**common, "options": options, "policy": {"beta": beta, "kl_in_reward": beta != 0, "kl_estimator": "k1" if beta else "k3"},
                                          "mask": batch["mask"], "old_logprobs": batch["old_logprobs"], "ref_logprobs": batch["ref_logprobs"]})
                            expected.append((f"rloo, {name}, {options} beta {beta}",
                                             advantage_of(RLOOTrainer, rewards, batch, num_generations=generations, normalize_advantages=normalize, beta=beta,
                                                          reward_clip_range=clip, **weight)))
    for answer, (what, (advantages, metrics)) in zip(drive(cases), expected, strict=True):
        assert "error" not in answer, f"{what}: {answer}"
        close(answer["advantages"], advantages, what, 2e-5)
        for metric, values in metrics.items():
            if math.isnan(values[-1]):
                assert metric not in answer["metrics"], f"{what}: {metric}"
            else:
                close(answer["metrics"][metric], values[-1], f"{what}: {metric}", 1e-5)
    assert len(cases) > 100


def test_soft_overlong_punishment():
    lengths = list(range(0, 130, 3)) + [80, 81, 100, 101]
    for cache in (0, 20, 100):
        answer, = drive([{"kind": "overlong", "lengths": lengths, "max_completion_len": 100, "soft_punish_cache": cache}])
        close(answer["rewards"], get_soft_overlong_punishment(100, cache)(completion_ids=[[0] * n for n in lengths]), f"cache {cache}")


# ---- preferences ----------------------------------------------------------------------------------------------------

def padded(lengths, seed):
    """Log-probabilities by token [N, L], 0 after each completion's end, as TRL's fused head gives them."""
    mask = torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)
    return -randn(len(lengths), max(lengths), seed=seed).abs() * mask, mask


def outputs_of(logprobs, mask):
    return types.SimpleNamespace(log_probs=logprobs, entropy=torch.zeros_like(logprobs), mean_logits=torch.zeros_like(logprobs), is_top1=mask, log_sum_sq_probs=None)


PAIR_LENGTHS = ([4, 1, 7, 3, 12], [2, 5, 7, 3, 6])


def trl_dpo(options, policy, reference, mask):
    logprobs = policy.clone().requires_grad_()
    settings = {f.name: f.default for f in dataclasses.fields(DPOConfig)}
    settings |= {key: value for key, value in options.items()}
    trainer = bare(
        DPOTrainer, precompute_ref_logps=False, ld_alpha=None, f_divergence_type=settings["f_divergence_type"], f_alpha_divergence_coef=settings["f_alpha_divergence_coef"],
        loss_types=options["loss_type"], loss_weights=options.get("loss_weights") or [1.0] * len(options["loss_type"]), beta=settings["beta"],
        label_smoothing=settings["label_smoothing"], use_weighting=False, args=types.SimpleNamespace(discopop_tau=settings["discopop_tau"], gradient_checkpointing_kwargs=None),
        ref_model=lambda **k: outputs_of(reference, mask))
    trainer.model = Training()
    completion = torch.cat([torch.zeros(mask.size(0), 1), mask.float()], 1).long()
    model = lambda **k: outputs_of(logprobs, mask)  # noqa: E731
    loss = DPOTrainer._compute_loss(trainer, model, {"input_ids": completion, "attention_mask": torch.ones_like(completion), "completion_mask": completion}, False)
    return loss, torch.autograd.grad(loss, logprobs)[0], trainer._metrics["train"]


DPO = [({"loss_type": [name], "beta": beta, **more}) for beta in (0.1, 0.8) for name, more in [
    ("sigmoid", {}), ("hinge", {}), ("ipo", {}), ("robust", {"label_smoothing": 0.1}), ("robust", {}), ("exo_pair", {"label_smoothing": 1e-3}), ("nca_pair", {}),
    ("bco_pair", {}), ("sppo_hard", {}), ("apo_zero", {}), ("apo_down", {}), ("discopop", {}), ("discopop", {"discopop_tau": 0.3}), ("sigmoid_norm", {}),
    ("sigmoid", {"f_divergence_type": "forward_kl"}), ("ipo", {"f_divergence_type": "js_divergence"}), ("hinge", {"f_divergence_type": "alpha_divergence"}),
    ("robust", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.4}), ("sigmoid", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0})]]
DPO.append({"loss_type": ["sigmoid", "bco_pair", "hinge"], "loss_weights": [0.8, 0.2, 1.5]})


def test_dpo():
    policy, mask = padded(PAIR_LENGTHS[0] + PAIR_LENGTHS[1], 1)
    reference = (policy + randn(*policy.shape, seed=2, scale=0.5)) * mask
    summed, ref = policy.sum(1), reference.sum(1)
    batch = {"chosen_logps": summed[:5], "rejected_logps": summed[5:], "ref_chosen_logps": ref[:5], "ref_rejected_logps": ref[5:],
             "chosen_lengths": PAIR_LENGTHS[0], "rejected_lengths": PAIR_LENGTHS[1]}
    answers = drive([{"kind": "pairs", "options": options, **batch} for options in DPO])
    names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
    for answer, options in zip(answers, DPO, strict=True):
        assert "error" not in answer, f"{options}: {answer}"
        loss, gradient, metrics = trl_dpo(options, policy, reference, mask)
        close(answer["loss"], loss, f"{options} loss")
        by_token = torch.tensor(answer["dchosen"] + answer["drejected"]).unsqueeze(1) * mask
        close(by_token, gradient * mask, f"{options} gradient", 5e-6)
        close_metrics(answer["metrics"], metrics, names, str(options))


def test_cpo_simpo_orpo():
    policy, mask = padded(PAIR_LENGTHS[0] + PAIR_LENGTHS[1], 3)
    prompt = -randn(5, 3, seed=4).abs()  # of the chosen completions' prompts
    n = mask.sum(1)
    cases, expected = [], []
    for name, trl_type in (("cpo", "sigmoid"), ("cpo_hinge", "hinge"), ("cpo_ipo", "ipo"), ("simpo", "simpo"), ("orpo", "orpo")):
        for smoothing in (0.0, 0.2) if name in ("cpo", "simpo") else (0.0,):
            for cpo_alpha in (0.0, 0.7) if name != "orpo" else (1.0,):
                logprobs, prompts = policy.clone().requires_grad_(), prompt.clone().requires_grad_()
                summed = (logprobs * mask).sum(1)
                scores = summed / n if trl_type in ("ipo", "simpo", "orpo") else summed
                if name == "orpo":
                    nll = -(summed[:5].sum() + prompts.sum()) / (n[:5].sum() + prompts.numel())
                else:
                    nll = -summed[:5].sum() / n[:5].sum()
                kind = ORPOTrainer if name == "orpo" else CPOTrainer
                trainer = bare(kind, beta=0.3, label_smoothing=smoothing, simpo_gamma=0.9, cpo_alpha=cpo_alpha, loss_type=trl_type, alpha=0.0,
                               concatenated_forward=lambda *a: (scores[:5], scores[5:], torch.zeros(1), torch.zeros(1), nll))
                loss, metrics = kind.get_batch_loss_metrics(trainer, None, None)
                gradients = torch.autograd.grad(loss, [logprobs, prompts], allow_unused=True)
                options = {"loss_type": [name], "beta": 0.3, "label_smoothing": smoothing}
                if name == "simpo":
                    options["simpo_gamma"] = 0.9
                if name != "orpo":
                    options["cpo_alpha"] = cpo_alpha
                tokens = n[:5].sum().item() + (prompt.numel() if name == "orpo" else 0)
                sums = (policy * mask).sum(1)
                cases.append({"kind": "pairs", "options": options, "chosen_logps": sums[:5], "rejected_logps": sums[5:], "chosen_lengths": PAIR_LENGTHS[0],
                              "rejected_lengths": PAIR_LENGTHS[1], "likelihood": sums[:5].sum().item() + (prompt.sum().item() if name == "orpo" else 0), "likelihood_tokens": tokens})
                expected.append((str(options), loss, gradients, metrics))
    for answer, (what, loss, (gradient, prompt_gradient), metrics) in zip(drive(cases), expected, strict=True):
        assert "error" not in answer, f"{what}: {answer}"
        close(answer["loss"], loss, what + " loss")
        by_token = torch.tensor(answer["dchosen"] + answer["drejected"]).unsqueeze(1) * mask
        by_token[:5] += answer["dlikelihood"] * mask[:5]
        close(by_token, gradient, what + " gradient", 5e-6)
        if prompt_gradient is not None:
            close(torch.full_like(prompt, answer["dlikelihood"]), prompt_gradient, what + " gradient by the prompt")
        for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "nll_loss", "log_odds_ratio", "log_odds_chosen"):
            if name in metrics and (name != "nll_loss" or "'cpo_alpha': 0.0" not in what):
                close(answer["metrics"][name], metrics[name], f"{what}: {name}", 1e-5)


def test_kto():
    lengths = [4, 1, 7, 3, 12, 5]
    policy, mask = padded(lengths, 7)
    reference = (policy + randn(*policy.shape, seed=8, scale=0.6)) * mask
    labels = [1, 0, 0, 1, 0, 1]
    cases, expected = [], []
    for loss_type in ("kto", "apo_zero_unpaired"):
        for shift in (-1.0, 1.5):  # KL estimates below and above 0
            kl, ref_kl = randn(6, seed=9), randn(6, seed=9) - shift
            for weights in ((1.0, 1.0), (1.3, 0.6)):
                logprobs = policy.clone().requires_grad_()
                trainer = bare(KTOTrainer, calculate_KL=loss_type == "kto", precompute_ref_logps=False, loss_type=loss_type, beta=0.4, desirable_weight=weights[0],
                               undesirable_weight=weights[1], args=types.SimpleNamespace(gradient_checkpointing_kwargs=None), ref_model=lambda **k: outputs_of(reference, mask))
                trainer.model = Training()
                trainer._compute_kl_logps = lambda model, batch: ref_kl if model is trainer.ref_model else kl
                completion = torch.cat([torch.zeros(6, 1), mask.float()], 1).long()
                loss = KTOTrainer._compute_loss(trainer, lambda **k: outputs_of(logprobs, mask),
                                                {"input_ids": completion, "attention_mask": torch.ones_like(completion), "completion_mask": completion,
                                                 "label": torch.tensor(labels, dtype=torch.bool)}, False)
                expected.append((f"{loss_type} {shift} {weights}", loss, torch.autograd.grad(loss, logprobs)[0], trainer._metrics["train"]))
                cases.append({"kind": "singles", "logps": policy.sum(1), "ref_logps": reference.sum(1), "desirable": labels, "kl_logps": kl, "ref_kl_logps": ref_kl,
                              "options": {"loss_type": [loss_type], "beta": 0.4, "desirable_weight": weights[0], "undesirable_weight": weights[1]}})
    for answer, (what, loss, gradient, metrics) in zip(drive(cases), expected, strict=True):
        assert "error" not in answer, f"{what}: {answer}"
        close(answer["loss"], loss, what + " loss")
        close(torch.tensor(answer["dlogps"]).unsqueeze(1) * mask, gradient * mask, what + " gradient")
        close_metrics(answer["metrics"], metrics, ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl"), what)
        close(answer["metrics"]["rewards/chosen"] - answer["metrics"]["rewards/rejected"], metrics["rewards/margins"][-1], what + " margins", 1e-5)


# ---- distillation ---------------------------------------------------------------------------------------------------

def test_distillation():
    student, teacher = randn(6, 13, seed=1, scale=2), randn(6, 13, seed=2, scale=2)
    mask = torch.tensor([1, 1, 0, 1, 1, 0])
    cases, expected = [], []
    for beta in (0.0, 1.0, 0.5, 0.1, 0.9):
        for temperature in (1.0, 2.0, 0.7):
            logits = student.clone().requires_grad_()
            labels = torch.where(mask == 1, 0, -100)
            loss = GKDTrainer.generalized_jsd_loss(logits.unsqueeze(0), teacher.unsqueeze(0), labels=labels.unsqueeze(0), beta=beta, temperature=temperature)
            # The newer trainer: hidden states that are the logits, heads that are the identity.
            hidden = student.clone().requires_grad_()
            eye = torch.eye(13)
            chunked, entropy, _ = _chunked_divergence_loss(hidden.unsqueeze(0), teacher.unsqueeze(0), eye, eye, mask.unsqueeze(0), beta, temperature=temperature)
            expected.append((f"beta {beta}, temperature {temperature}", loss, torch.autograd.grad(loss, logits)[0], chunked, torch.autograd.grad(chunked, hidden)[0], entropy))
            cases.append({"kind": "distill", "student": student, "teacher": teacher, "mask": mask, "scale": 1 / 4, "options": {"beta": beta, "temperature": temperature}})
    for answer, (what, loss, gradient, chunked, chunked_gradient, entropy) in zip(drive(cases), expected, strict=True):
        assert "error" not in answer, f"{what}: {answer}"
        close(answer["loss"], loss, what + " loss")
        close(answer["dlogits"], gradient, what + " gradient")
        close(answer["loss"], chunked, what + " loss of DistillationTrainer", 1e-5)
        close(answer["dlogits"], chunked_gradient, what + " gradient of DistillationTrainer", 1e-5)
        close(answer["entropy"], entropy, what + " entropy", 1e-5)


def test_distillation_from_files():
    student, teacher = randn(6, 13, seed=3, scale=2), randn(6, 13, seed=4, scale=1.5).log_softmax(1)
    mask = torch.tensor([1, 1, 0, 1, 1, 1])
    cases, expected = [], []
    for K in (1, 4, 8):
        logprobs, ids = teacher.topk(K, 1)
        for tail in (True, False):
            for beta in (0.0, 1.0, 0.4):
                logits = student.clone().requires_grad_()
                s, t, support = logits.log_softmax(1).gather(1, ids), logprobs, torch.ones_like(logprobs, dtype=torch.bool)
                if tail:
                    (s, both), (t, _) = server._add_tail_bucket(s, support), server._add_tail_bucket(t, support)
                else:
                    s, t, both = s - s.logsumexp(1, True), t - t.logsumexp(1, True), support
                loss = server._jsd_divergence(s, t, beta, both)[mask == 1].sum() / 5
                expected.append((f"K {K}, tail {tail}, beta {beta}", loss, torch.autograd.grad(loss, logits)[0]))
                cases.append({"kind": "distill_topk", "student": student, "ids": ids, "logprobs": logprobs, "mask": mask, "scale": 1 / 5,
                              "options": {"beta": beta, "loss_add_tail": tail}})
    for answer, (what, loss, gradient) in zip(drive(cases), expected, strict=True):
        assert "error" not in answer, f"{what}: {answer}"
        close(answer["loss"], loss, what + " loss", 1e-5)
        close(answer["dlogits"], gradient, what + " gradient", 1e-5)


# ---- settings -------------------------------------------------------------------------------------------------------

OURS = {"kl_estimator", "kl_in_reward", "advantage_estimator", "gamma", "lam"}


def test_defaults():
    """Every key is one of TRL's with its default, or one that is ours."""
    answer, = drive([{"kind": "defaults"}])

    def of(config):
        return {f.name: (f.default if f.default is not dataclasses.MISSING else f.default_factory() if f.default_factory is not dataclasses.MISSING else None)
                for f in dataclasses.fields(config)}

    grpo = of(GRPOConfig)
    compared = 0
    for section, others in (("policy", {}), ("advantages", {"normalize_advantages": False, "reward_clip_min": None, "reward_clip_max": None})):
        for key, value in answer[section].items():
            if key in OURS:
                continue
            expected = others.get(key, grpo[key] if key in grpo else "no such key")
            expected = [] if key == "reward_weights" and expected is None else expected
            assert value == expected, f"{key}: {value} beside {expected}"
            compared += 1
    preference = {**of(KTOConfig), **of(CPOConfig), **of(DPOConfig)}
    for key, value in answer["preference"].items():
        expected = [] if key == "loss_weights" else preference[key]
        assert value == expected, f"{key}: {value} beside {expected}"
        compared += 1
    distillation = of(DistillationConfig)
    for key in ("beta", "temperature"):
        assert answer["distill"][key] == distillation[key], key
        compared += 1
    assert compared > 45, compared


if __name__ == "__main__":
    sys.setrecursionlimit(10000)
    main([test_policy_losses, test_rollout_metrics, test_rloo_loss, test_advantages, test_soft_overlong_punishment, test_dpo, test_cpo_simpo_orpo, test_kto,
          test_distillation, test_distillation_from_files, test_defaults])
