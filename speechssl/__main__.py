"""`python -m speechssl VERB ...`, also under torchrun and `deepspeed --module`."""

import sys

from speechssl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
