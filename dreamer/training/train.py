"""Trains the run, or the runs of several seeds, of a configuration."""

from collections.abc import Sequence

from dreamer.config import Config
from dreamer.distributed import shard
from dreamer.system.signals import StopRequest
from dreamer.training.callbacks import Callback
from dreamer.training.hooks.rollback import RolledBack
from dreamer.training.seeds import train_together
from dreamer.training.trainer import Trainer


def train(
    config: Config, stop: StopRequest | None = None, callbacks: Sequence[Callback] = ()
) -> None:
    """Trains until `run.steps` or until a signal or a callback requests to stop.

    Raises:
      UserError: what the user can fix, before anything is written.
    """
    config, stop = shard.of_run(config), stop or StopRequest()
    trainers: list[Trainer] = []

    def last_words() -> str:
        kept = "; ".join([one.checkpoints.kept for one in trainers]) or "nothing was started"
        seconds = f"run.grace_seconds={config.run.grace_seconds:g}"
        return f"{seconds} are over, the process ends: {kept}"

    with stop.grace(config.run.grace_seconds, last_words):
        while True:
            try:
                if config.run.seeds > 1:
                    return train_together(config, stop, callbacks, trainers)
                with Trainer(config, stop, callbacks) as trainer:
                    trainers.append(trainer)
                    return trainer.run()
            except RolledBack:  # the next trainer restores the checkpoint it was rolled back to
                trainers.clear()
                stop.saves = 0  # those requested before were done
