"""The optimizers beside SGD and Adam, layer-wise learning rates: what `generate.py` writes into optim_more.json.

Muon's orthogonalisation is computed by PyTorch in bfloat16, whatever the parameters are: three digits. Ours has the
parameters' type, so the trajectories here are PyTorch's with the same iteration in f64 in its place, and `torch` has what
PyTorch itself comes to at the end, with `bf16_distance`, how far that is off.
"""

import timm
import timm.optim
import torch
import torch.optim._muon as muon

STEPS = 6
LRS = [0.1, 0.1, 0.05, 0.2, 0.01, 0.1]
SHAPES = {"w.weight": (3, 4), "w.bias": (5,), "idle.weight": (2, 2)}

OPTIMIZERS = {
    "rmsprop": (torch.optim.RMSprop, {}),
    "rmsprop_wd": (torch.optim.RMSprop, {"weight_decay": 0.05, "alpha": 0.9, "eps": 1e-3}),
    "rmsprop_momentum": (torch.optim.RMSprop, {"momentum": 0.9}),
    "rmsprop_centered": (torch.optim.RMSprop, {"centered": True, "alpha": 0.9}),
    "rmsprop_all": (torch.optim.RMSprop, {"weight_decay": 0.05, "momentum": 0.8, "centered": True, "alpha": 0.95, "eps": 1e-2}),
    "lamb": (timm.optim.Lamb, {"weight_decay": 0.0}),
    "lamb_wd": (timm.optim.Lamb, {"weight_decay": 0.05}),
    "lamb_all": (timm.optim.Lamb, {"weight_decay": 0.02, "betas": [0.8, 0.95], "eps": 1e-4, "max_grad_norm": None}),
    "lion": (timm.optim.Lion, {}),
    "lion_wd": (timm.optim.Lion, {"weight_decay": 0.1}),
    "lion_betas": (timm.optim.Lion, {"betas": [0.4, 0.45], "weight_decay": 0.1}),
}

# What the values of these keys are trained with by Muon; the others by AdamW.
MATRICES = {"conv.weight": (4, 2, 3, 3), "wide.weight": (3, 7), "tall.weight": (6, 4), "square.weight": (5, 5)}
OTHERS = {"square.bias": (5,), "cls_token": (1, 1, 6), "embed.weight": (4, 3), "fc.weight": (3, 5), "fc.bias": (3,)}
MUONS = {
    "muon": {},
    "muon_plain": {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0},
    "muon_rms": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.05},
    "muon_spectral": {"adjust_lr_fn": "spectral_unclamped"},
}
ADAMW = {"betas": [0.9, 0.95], "eps": 1e-8}
ADAMW_LR_FACTOR = 0.1


def newton_schulz_f64(grad, ns_coefficients, ns_steps, eps):
    a, b, c = ns_coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if grad.size(0) > grad.size(1) else x


def lists(tensors):
    return {key: t.detach().flatten().tolist() for key, t in tensors.items()}


def data(unit, place, shapes, idle=()):
    """Initial values and the gradients of every step; of `idle` there is none at steps 0 and 3."""
    initial = {key: unit(f"{place}/{key}", shape) for key, shape in shapes.items()}
    grads = [{key: unit(f"{place}/{key}/grad{step}", shape) for key, shape in shapes.items()
              if not (key in idle and step in (0, 3))} for step in range(STEPS)]
    return initial, grads


def follow(parameters, grads, optimizers, factors):
    """The parameters after every step; `factors` are what each group of each optimizer has of the learning rate."""
    trajectory = []
    for step, lr in enumerate(LRS):
        for key, p in parameters.items():
            p.grad = grads[step][key].clone() if key in grads[step] else None
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * factors(group)
            optimizer.step()
        trajectory.append(lists(parameters))
    return trajectory


def simple(unit):
    initial, grads = data(unit, "optim_more", SHAPES, idle=("idle.weight",))
    runs = []
    for name, (kind, options) in OPTIMIZERS.items():
        for one_dimensional_decay in (True, False):
            for idle_lr in (1.0, 0.25):
                parameters = {key: t.clone().requires_grad_() for key, t in initial.items()}
                decay = options.get("weight_decay", 0.01 if kind is timm.optim.Lamb else 0.0)
                groups = [{"params": [p], "factor": idle_lr if key.startswith("idle") else 1.0,
                           "weight_decay": decay if one_dimensional_decay or p.dim() > 1 else 0.0}
                          for key, p in parameters.items()]
                optimizer = kind(groups, lr=LRS[0], foreach=False, **options)
                runs.append({
                    "name": name, "kind": name.split("_")[0], "options": options, "idle_lr_factor": idle_lr,
                    "decay_one_dimensional": one_dimensional_decay,
                    "parameters": follow(parameters, grads, [optimizer], lambda group: group["factor"]),
                })
    return {"shapes": {k: list(v) for k, v in SHAPES.items()}, "order": list(SHAPES), "initial": lists(initial),
            "grads": [lists(g) for g in grads], "runs": runs}


def muons(unit):
    shapes = MATRICES | OTHERS
    initial, grads = data(unit, "optim_muon", shapes, idle=("wide.weight", "fc.bias"))

    def run(options):
        parameters = {key: t.clone().requires_grad_() for key, t in initial.items()}
        # PyTorch's Muon takes matrices only: a convolution's weight is (out, rest) to it.
        flat = {key: parameters[key].detach().flatten(1).requires_grad_() for key in MATRICES}
        views = {**parameters, **flat}
        decay = options.get("weight_decay", 0.1)
        adamw = torch.optim.AdamW([
            {"params": [p], "weight_decay": decay if p.dim() > 1 else 0.0}
            for key, p in parameters.items() if key in OTHERS], lr=LRS[0], foreach=False, **ADAMW)
        optimizers = [torch.optim.Muon(list(flat.values()), lr=LRS[0], **options), adamw]
        flat_grads = [{key: g.flatten(1) if key in MATRICES else g for key, g in step.items()} for step in grads]
        return follow(views, flat_grads, optimizers, lambda group: 1.0 if "ns_steps" in group else ADAMW_LR_FACTOR)

    runs = []
    for name, options in MUONS.items():
        theirs = muon._zeropower_via_newtonschulz
        in_bf16 = run(options)
        muon._zeropower_via_newtonschulz = newton_schulz_f64
        in_f64 = run(options)
        muon._zeropower_via_newtonschulz = theirs
        distance = max(abs(a - b) for key in MATRICES for x, y in zip(in_bf16, in_f64) for a, b in zip(x[key], y[key]))
        runs.append({"name": name, "options": options, "parameters": in_f64, "bf16_distance": distance,
                     "torch": {key: in_bf16[-1][key] for key in MATRICES}})
    matrix = unit("newton_schulz", (4, 6))
    orthogonal = newton_schulz_f64(matrix, (muon.DEFAULT_A, muon.DEFAULT_B, muon.DEFAULT_C), muon.DEFAULT_NS_STEPS, muon.EPS)
    return {"shapes": {k: list(v) for k, v in shapes.items()}, "order": list(shapes), "matrices": list(MATRICES),
            "adamw": ADAMW, "adamw_lr_factor": ADAMW_LR_FACTOR,
            "initial": lists(initial), "grads": [lists(g) for g in grads], "runs": runs,
            "newton_schulz": {"matrix": matrix.tolist(), "result": orthogonal.tolist()}}


def layer_decay():
    networks = {}
    for name in ["resnet18", "vit_tiny_patch16_224", "seresnet18", "mixer_s32_224", "mobilenetv1_100"]:
        net = timm.create_model(name)
        groups = timm.optim.param_groups_layer_decay(net, weight_decay=0.05, layer_decay=0.75, no_weight_decay_list=())
        names = {id(p): key for key, p in net.named_parameters()}
        networks[name] = {names[id(p)]: [group["lr_scale"], group["weight_decay"]]
                          for group in groups for p in group["params"]}
    return {"layer_decay": 0.75, "weight_decay": 0.05, "networks": networks}


def optim_more(unit):
    return {"timm": timm.__version__, "lrs": LRS, "simple": simple(unit), "muon": muons(unit), "layer_decay": layer_decay()}
