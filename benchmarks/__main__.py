"""``python -m benchmarks [name …]``: run all measurements, or those named."""

import argparse
import importlib

NAMES = {
    "seeds": "one cycle against constant rates on MNIST_SAMPLE over ten seeds; writes the README's table",
    "pictures": "the README's two pictures",
    "events": "the README's table of events",
}


def main() -> None:
    """Run what is named on the command line."""
    listing = "\n".join(f"  {name:10} {what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"names:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help="what to run; all by default")
    for name in parser.parse_args().names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
