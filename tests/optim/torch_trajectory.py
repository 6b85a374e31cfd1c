"""Writes trajectories of torch's optimizers: python torch_trajectory.py FOLDER

A case NAME gives NAME.start, NAME.grads [steps, n], NAME.lrs [steps] and NAME.params [len(MARKS), n] as raw little-endian float64,
all parameters flat, one after another. Gradients come from the trajectory itself: a noisy pull towards a moving target.
"""

import sys

import torch

SHAPES = [(24, 16), (16, 40), (13,), (37, 8)]  # the C++ test has the same ones
STEPS, MARKS = 1000, (1, 10, 100, 1000)


def zeropower_float32(grad, coefficients, ns_steps, eps):
    """torch.optim._muon._zeropower_via_newtonschulz without its cast to bfloat16."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def run(folder, name, make, max_norm=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    targets = [torch.randn(s, generator=generator) for s in SHAPES]
    optimizers = make(params)
    flat = lambda tensors: torch.cat([t.detach().reshape(-1).double() for t in tensors])
    start, grads, lrs, marks = flat(params), [], [], []
    base = [group["lr"] for o in optimizers for group in o.param_groups]
    for step in range(1, STEPS + 1):
        factor = min(1.0, step / 50) * (1.0 - 0.9 * step / STEPS)
        for group, lr in zip([g for o in optimizers for g in o.param_groups], base):
            group["lr"] = lr * factor
        for p, target in zip(params, targets):
            p.grad = (p.detach() - target) * 0.5 + torch.randn(p.shape, generator=generator) * 0.3
        grads.append(flat([p.grad for p in params]))
        lrs.append(base[0] * factor)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        for o in optimizers:
            o.step()
        if step in MARKS:
            marks.append(flat(params))
    for suffix, data in [("start", start), ("grads", torch.stack(grads)), ("lrs", torch.tensor(lrs).double()),
                         ("params", torch.stack(marks))]:
        data.numpy().tofile(f"{folder}/{name}.{suffix}")


def main(folder):
    torch.set_num_threads(1)
    torch.optim._muon._zeropower_via_newtonschulz = zeropower_float32
    adamw = lambda ps, **k: torch.optim.AdamW(ps, foreach=False, **k)
    decay, none = 0.1, 0.0
    # Decay groups: what has one dimension is not decayed.
    groups = lambda ps: [dict(params=[p for p in ps if p.ndim > 1], weight_decay=decay),
                         dict(params=[p for p in ps if p.ndim == 1], weight_decay=none)]
    run(folder, "adamw", lambda ps: [adamw(groups(ps), lr=3e-3, betas=(0.9, 0.95), eps=1e-8)])
    run(folder, "adamw_clip", lambda ps: [adamw(groups(ps), lr=3e-3, betas=(0.9, 0.999), eps=1e-6)], max_norm=1.0)
    run(folder, "sgd", lambda ps: [torch.optim.SGD(ps, lr=1e-2)])
    run(folder, "sgd_momentum", lambda ps: [torch.optim.SGD(groups(ps), lr=1e-2, momentum=0.9)])
    run(folder, "sgd_nesterov", lambda ps: [torch.optim.SGD(groups(ps), lr=1e-2, momentum=0.9, nesterov=True)])
    for name, extra in [("muon", {}), ("muon_plain", {"nesterov": False, "ns_steps": 3}),
                        ("muon_rms", {"adjust_lr_fn": "match_rms_adamw"})]:
        # The last matrix plays an embedding: AdamW has it, with half of the learning rate, and it is not decayed.
        run(folder, name, lambda ps: [
            torch.optim.Muon(ps[:2], lr=2e-2, weight_decay=decay, momentum=0.95, **extra),
            adamw(ps[2:], lr=1e-2, betas=(0.9, 0.95), weight_decay=none)])


if __name__ == "__main__":
    main(sys.argv[1])
