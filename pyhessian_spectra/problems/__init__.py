"""Named problems: checkpoints, datasets on disk, the architectures of the papers, user factories."""

from __future__ import annotations

from pyhessian_spectra.problems.checkpoints import Checkpoint as Checkpoint
from pyhessian_spectra.problems.checkpoints import fit_state_dict as fit_state_dict
from pyhessian_spectra.problems.checkpoints import read_checkpoint as read_checkpoint
from pyhessian_spectra.problems.checkpoints import save_checkpoint as save_checkpoint
from pyhessian_spectra.problems.datasets import Dataset as Dataset
from pyhessian_spectra.problems.datasets import load_data as load_data
from pyhessian_spectra.problems.factory import Problem as Problem
from pyhessian_spectra.problems.factory import load_problem as load_problem
from pyhessian_spectra.problems.training import train_digits as train_digits
