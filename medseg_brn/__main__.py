"""`python -m medseg_brn` is the command line, as `torchrun -m medseg_brn` needs it."""

from medseg_brn.cli.main import main

if __name__ == "__main__":
    main()
