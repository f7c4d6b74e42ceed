"""``python -m minifast``: the same as the command ``minifast``."""

import sys

from minifast.cli import main

if __name__ == "__main__":
    sys.exit(main())
