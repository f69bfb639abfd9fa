"""The loop that a configuration chooses."""

import jax

from dreamer.config import Config
from dreamer.envs import registry
from dreamer.training.actor_loop import ActorLoop
from dreamer.training.device_loop import DeviceLoop
from dreamer.training.host_loop import HostLoop
from dreamer.training.loop import Loop
from dreamer.training.offline_loop import OfflineLoop


def make_loop(config: Config, devices: list[jax.Device]) -> Loop:
    """The loop that `run.loop`, `run.actors` and `run.offline` choose."""
    if config.run.offline:
        return OfflineLoop(config, devices)
    if config.run.actors != "local":
        return ActorLoop(config, devices)
    choice = config.run.loop
    if choice == "device" or (choice == "auto" and registry.is_jax(config.env)):
        return DeviceLoop(config, devices)
    return HostLoop(config, devices)
