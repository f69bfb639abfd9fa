"""Reads the golden agents and maps the reference's weight names to this project's parameters."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from dm_env import specs

from dreamer.agents.dreamer import parts
from dreamer.agents.registry import make_agent
from dreamer.config.agent import AgentConfig

FOLDER = pathlib.Path(__file__).parent / "golden"

RULES = [
    (r"enc/mlp(\d)norm/", r"encoder/mlp/block\1/norm/"),
    (r"enc/mlp(\d)/", r"encoder/mlp/block\1/linear/"),
    (r"enc/cnn(\d)norm/", r"encoder/norm\1/"),
    (r"enc/cnn(\d)/", r"encoder/conv\1/"),
    (r"dyn/dynin0norm/", "rssm/embed_deter/norm/"),
    (r"dyn/dynin0/", "rssm/embed_deter/linear/"),
    (r"dyn/dynin1norm/", "rssm/embed_stoch/norm/"),
    (r"dyn/dynin1/", "rssm/embed_stoch/linear/"),
    (r"dyn/dynin2norm/", "rssm/embed_action/norm/"),
    (r"dyn/dynin2/", "rssm/embed_action/linear/"),
    (r"dyn/dynhid0norm/", "rssm/dynamics_norm_0/"),
    (r"dyn/dynhid0/", "rssm/dynamics_hidden_0/"),
    (r"dyn/dyngru/", "rssm/gates/"),
    (r"dyn/obs0norm/", r"rssm/posterior_norm/"),
    (r"dyn/obs0/", r"rssm/posterior_in/"),
    (r"dyn/obslogit/", "rssm/posterior_out/"),
    (r"dyn/prior(\d)norm/", r"rssm/prior_mlp/block\1/norm/"),
    (r"dyn/prior(\d)/", r"rssm/prior_mlp/block\1/linear/"),
    (r"dyn/priorlogit/", "rssm/prior_out/"),
    (r"dec/sp0/", "decoder/space_deter/"),
    (r"dec/sp1norm/", "decoder/space_hidden/norm/"),
    (r"dec/sp1/", "decoder/space_hidden/linear/"),
    (r"dec/sp2/", "decoder/space_stoch/"),
    (r"dec/spnorm/", "decoder/norm_space/"),
    (r"dec/conv(\d)norm/", r"decoder/norm\1/"),
    (r"dec/conv(\d)/", r"decoder/conv\1/"),
    (r"dec/imgout/", "decoder/pixels/"),
    (r"dec/vec/(\w+)/pred/", r"decoder/out_\1/"),
    (r"pol/head/(\w+)/mean/", r"actor/mean_\1/"),
    (r"pol/head/(\w+)/stddev/", r"actor/std_\1/"),
    (r"pol/head/(\w+)/logits/", r"actor/logits_\1/"),
    (r"(dec|rew|con|pol|val|slowval)/mlp/linear(\d)/", r"\1/mlp/block\2/linear/"),
    (r"(dec|rew|con|pol|val|slowval)/mlp/norm(\d)/", r"\1/mlp/block\2/norm/"),
    (r"(rew|con|val|slowval)/head/logits?/", r"\1/out/"),
]
MODULES = {
    "dec": "decoder",
    "rew": "reward",
    "con": "cont",
    "pol": "actor",
    "val": "critic",
    "slowval": "slow_critic",
}


def our_name(name: str) -> str:
    """`dyn/obs0/kernel` to `rssm/posterior_mlp/block0/linear/kernel`."""
    for pattern, replacement in RULES:
        name, count = re.subn("^" + pattern, replacement, name)
        if count:
            break
    module, rest = name.split("/", 1)
    return f"{MODULES.get(module, module)}/{rest}"


def part(data: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries below `prefix/`, with the prefix taken off."""
    return {
        key[len(prefix) + 1 :]: value for key, value in data.items() if key.startswith(prefix + "/")
    }


def weights(data: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Weights by our name; statistics that are not weights are left out."""
    return {
        our_name(name): value
        for name, value in part(data, prefix).items()
        if not name.startswith(("retnorm", "slowval_count"))
    }


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters as `module/.../kernel`, without flax's inner `params` level."""
    flat = {}
    for key, value in params.items():
        path = prefix if key == "params" else f"{prefix}{key}/"
        flat |= (
            flatten(value, path) if isinstance(value, Mapping) else {path[:-1]: np.asarray(value)}
        )
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`: every module gets its `params` level back."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        module, *path = name.split("/")
        node = tree.setdefault(module, {}).setdefault("params", {})
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = value
    return tree


def load(
    name: str, compute_dtype: str = "float32"
) -> tuple[parts.Parts, dict[str, np.ndarray], dict[str, Any], parts.State]:
    """The agent `vector_continuous` or `image_discrete`: agent, raw data, batch, state."""
    with np.load(FOLDER / f"{name}.npz") as file:
        data = dict(file)
    config = AgentConfig.model_validate(
        {
            "compute_dtype": compute_dtype,
            "units": 16,
            "depth": 4,
            "rssm": {"deter": 32, "hidden": 8, "blocks": 4, "stoch": 4, "classes": 4},
            "decoder": {"blocks": 4},
            "actor": {"gradient": "reinforce", "unimix": 0.0},
            "returns": {"imagination": 5},
        }
    )
    if name == "vector_continuous":
        keys = {"position": 5, "velocity": 3}
        observations = {key: specs.Array((size,), np.float32, key) for key, size in keys.items()}
        actions = {"action": specs.BoundedArray((2,), np.float32, -1, 1, "action")}
    else:
        observations = {"image": specs.BoundedArray((64, 64, 3), np.uint8, 0, 255, "image")}
        actions = {"action": specs.DiscreteArray(6, np.int32, "action")}
    agent = make_agent(config, observations, actions)
    flat = weights(data, "params")
    params = unflatten(
        {key: value for key, value in flat.items() if not key.startswith("slow_critic")}
    )
    slow = unflatten({key: value for key, value in flat.items() if key.startswith("slow_critic")})[
        "slow_critic"
    ]
    state = parts.state_of(agent, params).replace(slow_critic=slow)
    replayed = part(data, "data")
    flags = ("reward", "is_first", "is_last", "is_terminal")
    batch = {
        "observation": {key: replayed[key] for key in observations},
        "action": {"action": replayed["action"]},
        "latent": {
            "deter": replayed["dyn/deter"],
            "stoch": replayed["dyn/stoch"].argmax(-1).astype(np.uint8),
        },
        **{key: replayed[key] for key in flags},
    }
    return agent, data, batch, state
