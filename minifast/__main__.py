"""Run the command ``minifast`` as ``python -m minifast``."""

import sys

from minifast.cli import main

if __name__ == "__main__":
    sys.exit(main())
