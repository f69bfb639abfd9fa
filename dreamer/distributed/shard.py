"""What each of several hosts has of a run: a folder inside the run folder, a shard of the numbers.

In the configuration environments, sequences of a batch, capacity and steps are those of all hosts
together.
"""

from pathlib import Path

from dreamer.config import Config, serialization
from dreamer.distributed import hosts
from dreamer.errors import UserError
from dreamer.system import files

HOSTS = "hosts"  # the folder in a run folder with those of all hosts but the first
# What may be another on every host.
_OWN = {
    "run": {"dir", "coordinator", "num_processes", "process_id"},
    "checkpoint": {"dir"},
    "replay": {"folder"},
}


def of_run(config: Config) -> Config:
    """The configuration that this host keeps: with its own folders, and without its address.

    Raises:
      UserError: hosts have other settings, or these are not for several.
    """
    number, count = hosts.index(), hosts.count()
    if count == 1:
        return config
    _refuse_options(config, count)
    _compare(config)
    run = {"coordinator": "", "num_processes": 0, "process_id": -1}
    checkpoint = {}
    if number:
        inside = HOSTS, f"{HOSTS}/{number}"
        for named in filter(None, (config.run.dir, config.checkpoint.dir)):
            files.refuse_links(Path(named).expanduser(), *inside)
        run["dir"] = f"{config.run.dir}/{HOSTS}/{number}"
        if config.checkpoint.dir:
            checkpoint["dir"] = f"{config.checkpoint.dir}/{HOSTS}/{number}"
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=run),
            "checkpoint": config.checkpoint.model_copy(update=checkpoint),
        }
    )


def of_host(config: Config) -> Config:
    """The configuration of this host's loop, which knows of no other and counts its own steps."""
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
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=part) for name, part in parts.items()}
    )


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
                f"{option} is for one host, and here are {count}; leave it out, or train on one "
                "with run.coordinator=none"
            )
    if config.env.num_envs % count:
        raise UserError(
            f"env.num_envs={config.env.num_envs} cannot be spread over {count} hosts; make it a "
            f"multiple of {count}"
        )


def _compare(config: Config) -> None:
    texts = hosts.exchange(serialization.to_yaml(_without_own(config)))
    first = texts[0].splitlines()
    for number, text in enumerate(texts):
        for ours, theirs in zip(first, text.splitlines(), strict=False):
            if ours != theirs:
                raise UserError(
                    f"host {number} has {theirs.strip()} where host 0 has {ours.strip()}; start "
                    "all hosts with the same settings"
                )


def compare_devices(count: int, stored: str) -> None:
    """Refuses hosts that would compute another program.

    Args:
      count: of devices of this host.
      stored: where the replay is.

    Raises:
      UserError: hosts differ.
    """
    where = "device" if stored == "device memory" else "host"
    texts = hosts.exchange(f"{count} devices and replay.where={where}")
    for number, text in enumerate(texts):
        if text != texts[0]:
            raise UserError(
                f"host {number} has {text}, host 0 has {texts[0]}; set devices=N and "
                "replay.where to what all hosts can do"
            )


def _without_own(config: Config) -> Config:
    parts = {
        name: getattr(config, name).model_copy(
            update={key: type(getattr(config, name)).model_fields[key].default for key in keys}
        )
        for name, keys in _OWN.items()
    }
    return config.model_copy(update=parts)
