"""`python -m rft_jax` is the command `rft-jax`."""

import sys

from rft_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
