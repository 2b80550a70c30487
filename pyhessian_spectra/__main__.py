"""``python -m pyhessian_spectra``: the console script, for where scripts are not on the path."""

from pyhessian_spectra.cli import main

if __name__ == "__main__":
    main()
