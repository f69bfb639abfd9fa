"""`python -m dreamer.train [GROUP=CHOICE ...] [KEY=VALUE ...]`: trains; again, it resumes."""

from functools import partial

from dreamer.cli import command, train
from dreamer.system.signals import StopRequest

if __name__ == "__main__":
    signals = StopRequest(ends_process=True)
    command.run(partial(train.main, entered=signals), signals)
elif __name__ != "__mp_main__":  # as which spawned processes import it
    raise ImportError(
        "dreamer.train is the command python -m dreamer.train; a program calls the function "
        "dreamer.train(...), or dreamer.cli.train.main(argv)"
    )
