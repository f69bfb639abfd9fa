"""`python -m dreamer.export run=PATH [KEY=VALUE ...]`: a policy that runs without this package."""

import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; raises UserError."""
    # Slow to import.
    from dreamer.cli import usage
    from dreamer.config import ExportOptions

    found = usage.of_run(sys.argv[1:] if argv is None else argv, ExportOptions, "export")
    if found is None:
        return 0
    options, env = found
    from dreamer.system import runtime

    runtime.runtime(options.platform)
    from dreamer.api.agent import TrainedAgent
    from dreamer.checkpoint import loading, paths
    from dreamer.exporting import folder, observations

    saved = loading.load(options.run, options.checkpoint, options.trust, env)
    agent = TrainedAgent(saved.config, saved.agent, saved.params, saved.step)
    named = paths.expand(options.out, "out") if options.out else None
    out = named or saved.folder / f"policy-{agent.step}"
    folder.check(out)
    seen, origin = observations.choose(
        saved, folder.recorded_envs(options), options.steps, options.seed
    )
    count = folder.export(agent, seen, out, options)
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    print(f"written to {out}: {size / 1e6:,.1f} MB")
    print(f"it acts as the agent of step {agent.step:,} does on {count:,} {origin} observations")
    print(f"python {out / 'load_policy.py'} checks it again, without dreamer")
    return 0
