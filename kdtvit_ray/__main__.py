"""`python -m kdtvit_ray` is the command line `kdtvit-ray`."""

import sys

from kdtvit_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
