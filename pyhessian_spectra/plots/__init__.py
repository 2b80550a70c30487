"""Drawing: computed results in, matplotlib Axes out.

Every function takes ``ax=None`` and returns the Axes it drew on. Without ``ax`` the figure is its own, unknown to
pyplot: save it with ``ax.figure.savefig``, or draw on the Axes of ``pyplot.subplots`` to see it in a window.
"""

from pyhessian_spectra.plots.axis import EigenvalueAxis as EigenvalueAxis
from pyhessian_spectra.plots.classes import plot_carriers as plot_carriers
from pyhessian_spectra.plots.classes import plot_class_structure as plot_class_structure
from pyhessian_spectra.plots.comparison import plot_correlation as plot_correlation
from pyhessian_spectra.plots.comparison import plot_differences as plot_differences
from pyhessian_spectra.plots.comparison import plot_layer_differences as plot_layer_differences
from pyhessian_spectra.plots.comparison import plot_multiples as plot_multiples
from pyhessian_spectra.plots.comparison import plot_overlaid as plot_overlaid
from pyhessian_spectra.plots.data_curve import plot_data_curve as plot_data_curve
from pyhessian_spectra.plots.density import plot_cdf as plot_cdf
from pyhessian_spectra.plots.density import plot_density as plot_density
from pyhessian_spectra.plots.density import plot_density_rows as plot_density_rows
from pyhessian_spectra.plots.density import plot_layer_densities as plot_layer_densities
from pyhessian_spectra.plots.eigenvalues import plot_eigenvalues as plot_eigenvalues
from pyhessian_spectra.plots.eigenvalues import plot_layer_traces as plot_layer_traces
from pyhessian_spectra.plots.eigenvalues import plot_trajectory as plot_trajectory
from pyhessian_spectra.plots.matrix import plot_matrix as plot_matrix
from pyhessian_spectra.plots.matrix import plot_profiles as plot_profiles
from pyhessian_spectra.plots.runs import plot_runs as plot_runs
from pyhessian_spectra.plots.similarity import plot_clusters as plot_clusters
from pyhessian_spectra.plots.similarity import plot_depth as plot_depth
from pyhessian_spectra.plots.similarity import plot_similarity as plot_similarity
from pyhessian_spectra.plots.steps import plot_cg as plot_cg
from pyhessian_spectra.plots.steps import plot_reduction as plot_reduction
from pyhessian_spectra.plots.steps import plot_residuals as plot_residuals
from pyhessian_spectra.plots.structure import plot_coupling as plot_coupling
from pyhessian_spectra.plots.structure import plot_localisation as plot_localisation
from pyhessian_spectra.plots.structure import plot_tracks as plot_tracks
from pyhessian_spectra.plots.style import measured_in as measured_in
from pyhessian_spectra.plots.style import save as save
from pyhessian_spectra.plots.style import theme as theme
from pyhessian_spectra.plots.surface import plot_loss_contour as plot_loss_contour
from pyhessian_spectra.plots.surface import plot_loss_landscape as plot_loss_landscape
from pyhessian_spectra.plots.surface import plot_loss_line as plot_loss_line
from pyhessian_spectra.plots.surface import plot_loss_lines as plot_loss_lines
from pyhessian_spectra.plots.track import plot_batch_eigenvalues as plot_batch_eigenvalues
from pyhessian_spectra.plots.track import plot_track as plot_track
from pyhessian_spectra.plots.weyl import plot_weyl as plot_weyl
