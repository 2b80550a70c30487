"""The report: saved analyses in, one self-contained HTML file out."""

from pyhessian_spectra.numbers import format_with_error as format_with_error
from pyhessian_spectra.report.comparison import write_comparison as write_comparison
from pyhessian_spectra.report.schema import results_schema as results_schema
from pyhessian_spectra.report.training import write_training as write_training
from pyhessian_spectra.report.write import write_report as write_report
