"""The shard of each of several hosts: a folder inside the run folder, a part of the numbers.

The configuration counts environments, sequences of a batch, capacity and steps of all hosts.
"""

from pathlib import Path
from typing import Any

from dreamer.config import Config, serialization
from dreamer.distributed import hosts
from dreamer.errors import UserError
from dreamer.system import files

HOSTS = "hosts"  # the folder in a run folder with those of all hosts but the first
# Keys that may differ between hosts.
_OWN = {
    "run": {"dir", "coordinator", "num_processes", "process_id"},
    "checkpoint": {"dir"},
    "replay": {"folder"},
}


def of_run(config: Config) -> Config:
    """The configuration that this host saves: with its own folders, and without its address.

    Raises:
      UserError: settings differ between hosts, or do not support several hosts.
    """
    number, count = hosts.index(), hosts.count()
    if count == 1:
        return config
    _refuse_options(config, count)
    defaults = {
        name: {key: type(getattr(config, name)).model_fields[key].default for key in keys}
        for name, keys in _OWN.items()
    }
    shared = serialization.to_yaml(_changed(config, defaults))
    _refuse_differences(shared, "start all hosts with the same settings")
    own: dict[str, Any] = {"run": {"coordinator": "", "num_processes": 0, "process_id": -1}}
    if number:
        inside = f"{HOSTS}/{number}"
        for name in ("run", "checkpoint"):
            if folder := getattr(config, name).dir:
                files.refuse_links(Path(folder).expanduser(), HOSTS, inside)
                own[name] = own.get(name, {}) | {"dir": f"{folder}/{inside}"}
    return _changed(config, own)


def of_host(config: Config) -> Config:
    """The configuration of this host's loop, which counts the environments and steps of this host
    alone."""
    count = hosts.count()
    if count == 1:
        return config
    envs = config.env.num_envs // count
    parts = {
        "env": {"num_envs": envs, "first": config.env.first + hosts.index() * envs},
        "replay": {
            "batch_size": config.replay.batch_size // count,
            "capacity": config.replay.capacity // count,
        },
        "run": {"steps": -(-config.run.steps // count)},  # rounded up
    }
    return _changed(config, parts)


def _refuse_options(config: Config, count: int) -> None:
    refused = {
        f"run.seeds={config.run.seeds}": config.run.seeds > 1,
        "run.offline=true": config.run.offline,
        f"run.actors={config.run.actors}": config.run.actors != "local",
        f"replay.load={config.replay.load}": config.replay.load,
    }
    for option, given in refused.items():
        if given:
            raise UserError(
                f"{option} supports one host, and there are {count}; leave it out, or train on one "
                "with run.coordinator=none"
            )
    if config.env.num_envs % count:
        raise UserError(
            f"env.num_envs={config.env.num_envs} cannot be divided among {count} hosts; make it a "
            f"multiple of {count}"
        )


def compare_devices(count: int, stored: str) -> None:
    """Refuses hosts that would compile another program.

    Args:
      count: number of devices of this host.
      stored: where the replay is stored.

    Raises:
      UserError: hosts differ.
    """
    where = "device" if stored == "device memory" else "host"
    advice = "set devices=N and replay.where to what all hosts support"
    _refuse_differences(f"{count} devices and replay.where={where}", advice)


def _refuse_differences(text: str, advice: str) -> None:
    first, *others = [one.splitlines() for one in hosts.exchange(text)]
    for number, other in enumerate(others, 1):
        for ours, theirs in zip(first, other, strict=False):
            if ours != theirs:
                raise UserError(
                    f"host {number} has {theirs.strip()}, host 0 has {ours.strip()}; {advice}"
                )


def _changed(config: Config, parts: dict[str, dict[str, Any]]) -> Config:
    """The configuration with other values of some keys, by section."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=part) for name, part in parts.items()}
    )
