"""Hessian spectra of neural networks, every number with its error."""

from pyhessian_spectra import curvature, spectra
from pyhessian_spectra._version import __version__
from pyhessian_spectra.analysis.analyze import analyze
from pyhessian_spectra.analysis.bulk import BulkEdge, split_bulk
from pyhessian_spectra.analysis.carriers import Carriers, carriers
from pyhessian_spectra.analysis.classes import ClassStructure, class_structure
from pyhessian_spectra.analysis.comparison import Comparison, Difference, compare_checkpoints
from pyhessian_spectra.analysis.correlation import RankCorrelation, correlate, rank_correlation
from pyhessian_spectra.analysis.coupling import LayerCoupling, layer_coupling
from pyhessian_spectra.analysis.data_curve import DataCurve, data_curve
from pyhessian_spectra.analysis.densities import Densities, compare_densities
from pyhessian_spectra.analysis.directions import random_direction, towards
from pyhessian_spectra.analysis.eigenspaces import Localisation, eigenspace_overlap, localisation
from pyhessian_spectra.analysis.fits import BulkFit, fit_marchenko_pastur, fit_semicircle
from pyhessian_spectra.analysis.gradient import GradientShares, gradient_shares
from pyhessian_spectra.analysis.operators import analyze_operator
from pyhessian_spectra.analysis.result import BlockAnalysis, GaussNewton, SpectralAnalysis
from pyhessian_spectra.analysis.saved import load_analyses, save_analyses
from pyhessian_spectra.analysis.similarity import SimilarityMatrix, similarity_matrix
from pyhessian_spectra.analysis.stability import Stability, edge_of_stability, stability_of
from pyhessian_spectra.analysis.structure import Structure
from pyhessian_spectra.analysis.surface import LossSurface, loss_surface
from pyhessian_spectra.analysis.table import Row, tidy, to_csv, to_frame
from pyhessian_spectra.analysis.trajectory import Trajectory, follow_checkpoints
from pyhessian_spectra.curvature import *  # noqa: F403 - both rooms list what is public
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra import *  # noqa: F403

__all__ = [
    "BlockAnalysis",
    "BulkEdge",
    "BulkFit",
    "Carriers",
    "ClassStructure",
    "Comparison",
    "DataCurve",
    "Densities",
    "Difference",
    "GaussNewton",
    "GradientShares",
    "LayerCoupling",
    "Localisation",
    "LossSurface",
    "Note",
    "RankCorrelation",
    "Row",
    "SimilarityMatrix",
    "SpectralAnalysis",
    "Stability",
    "Structure",
    "Trajectory",
    "__version__",
    "analyze",
    "analyze_operator",
    "carriers",
    "class_structure",
    "compare_checkpoints",
    "compare_densities",
    "correlate",
    "data_curve",
    "edge_of_stability",
    "eigenspace_overlap",
    "fit_marchenko_pastur",
    "fit_semicircle",
    "follow_checkpoints",
    "gradient_shares",
    "layer_coupling",
    "load_analyses",
    "localisation",
    "loss_surface",
    "random_direction",
    "rank_correlation",
    "save_analyses",
    "similarity_matrix",
    "split_bulk",
    "stability_of",
    "tidy",
    "to_csv",
    "to_frame",
    "towards",
]
__all__ += spectra.__all__
__all__ += curvature.__all__
