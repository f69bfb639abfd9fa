"""`python -m dreamer.train [GROUP=CHOICE ...] [KEY=VALUE ...]`: trains, or resumes a run."""

from functools import partial

from dreamer.cli import command, train
from dreamer.system.signals import StopRequest

if __name__ == "__main__":
    signals = StopRequest(ends_process=True)
    command.run(partial(train.main, entered=signals), signals)
elif __name__ != "__mp_main__":  # the name in spawned processes
    raise ImportError(
        "dreamer.train is the command python -m dreamer.train; programs call the function "
        "dreamer.train(...), or dreamer.cli.train.main(argv)"
    )
