"""`python -m dreamer.export run=PATH [KEY=VALUE ...]`: a policy that runs without this package."""

import sys
from contextlib import closing
from pathlib import Path

from dreamer import command
from dreamer.errors import UserError

HELP = "Usage: python -m dreamer.export run=PATH [KEY=VALUE ...]\n"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; UserError is for the caller."""
    # Slow to import.
    from dreamer import compose, usage
    from dreamer.config import ExportOptions
    from dreamer.run import paths

    argv = sys.argv[1:] if argv is None else argv
    if usage.wants_help(argv):
        print(HELP + usage.options_text(ExportOptions))
        return 0
    options = compose.options(argv, ExportOptions)
    if not paths.expand(options.run, "run").is_dir():
        raise UserError(f"run={options.run} is not a folder; name the folder of a training run")
    from dreamer import start

    start.runtime(options.platform)
    from dreamer.api.agent import TrainedAgent
    from dreamer.exporting import folder
    from dreamer.run import loading

    saved = loading.load(options.run, options.checkpoint)
    agent = TrainedAgent(saved.config, saved.agent, saved.params, saved.step)
    named = paths.expand(options.out, "out") if options.out else None
    out = named or saved.folder / f"policy-{agent.step}"
    folder.check(out)
    with closing(agent.make_env(folder.recorded_envs(options), options.seed)) as env:
        count = folder.export(agent, env, out, options)
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    print(f"written to {out}: {size / 1e6:,.1f} MB")
    print(f"it acts as the agent of step {agent.step:,} does on {count:,} recorded observations")
    print(f"python {out / 'load_policy.py'} checks it again, without dreamer")
    return 0


if __name__ == "__main__":
    command.run(main)
