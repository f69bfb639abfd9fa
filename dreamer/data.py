"""`python -m dreamer.data VERB [KEY=VALUE ...]`: records episodes, converts and describes them."""

import sys

from dreamer.cli import command, data

if __name__ == "__main__":
    command.run(data.main, announced=bool(sys.argv[1:]))
