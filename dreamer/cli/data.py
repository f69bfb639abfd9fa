"""`python -m dreamer.data VERB [KEY=VALUE ...]`: records episodes, converts and describes them."""

import sys
from typing import Any

from dreamer.errors import UserError, nearest

HELP = """\
Usage: python -m dreamer.data VERB [KEY=VALUE ...]

  python -m dreamer.data collect out=data/random env.task=Pendulum-v1 episodes=50
  python -m dreamer.data collect out=data/expert run=runs/first episodes=50
  python -m dreamer.data to_minari source=data/expert dataset=pendulum/expert-v0
  python -m dreamer.data info source=minari:pendulum/expert-v0

Options of the group env choose the environment where no run or folder does.
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; raises UserError."""
    # Slow to import.
    from dreamer.cli import compose, usage
    from dreamer.config import options as schemas

    verbs: dict[str, Any] = {
        "collect": schemas.CollectOptions,
        "to_minari": schemas.ToMinariOptions,
        "info": schemas.InfoOptions,
    }
    argv = (sys.argv[1:] if argv is None else argv) or ["help"]
    about = (f"\n{verb}: {o.__doc__}\n{usage.options_text(o)}" for verb, o in verbs.items())
    if usage.answered(argv, lambda: HELP + "\n".join(about)):
        return 0
    verb, *given = argv
    if verb not in verbs:
        raise UserError(f"{verb}: expected one of {', '.join(verbs)}{nearest(verb, verbs)}")
    options, env = compose.options_and_env(given, verbs[verb])
    if verb == "collect" and not (env or options.run):
        raise UserError(
            "collect needs an agent or an environment; add run=FOLDER, or env= as in "
            "env.task=CartPole-v1 for random actions"
        )
    from dreamer.system import runtime

    runtime.runtime(getattr(options, "platform", "cpu"))
    from dreamer.datasets import collect

    getattr(collect, verb)(options, env)
    return 0
