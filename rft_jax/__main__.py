"""`python -m rft_jax` is the command `rft-jax`."""

import sys

from rft_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
