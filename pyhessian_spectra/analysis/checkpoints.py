"""Finished analyses beside one another: what follows from them without a product, once for table, figures and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyhessian_spectra.analysis.bulk import BulkEdge, split_bulk
from pyhessian_spectra.analysis.metrics import USUAL
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.seeds import OverSeeds, checkpoint_names, over_seeds, runs_of
from pyhessian_spectra.analysis.similarity import SimilarityMatrix, similarity_matrix
from pyhessian_spectra.analysis.trajectory import Trajectory, follow_checkpoints
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown


@dataclass(frozen=True, repr=False)
class Checkpoints(Shown):
    """Analyses in the order of training, and what follows from them.

    Parameters
    ----------
    labels : tuple of str, length T
        What the checkpoints are called.
    analyses : tuple of SpectralAnalysis, length T
    bulks : tuple of BulkEdge, length T
        Of the whole matrices.
    similarities : tuple of mapping of str to SimilarityMatrix, length T
        Of the whole matrix and its layers, by the name of each usual metric; empty without layers.
    runs : mapping of str to tuple of int
        The checkpoints of each training run, by its folder's name; a single run is called ``""``.
    trajectories : mapping of str to Trajectory
        What moved in each run; a run is left out with fewer than two checkpoints, or where they are not of one model,
        each with eigenvalues.
    seeds : tuple of OverSeeds
        Means over runs that differ by their seed.
    """

    labels: tuple[str, ...]
    analyses: tuple[SpectralAnalysis, ...]
    bulks: tuple[BulkEdge, ...]
    similarities: tuple[Mapping[str, SimilarityMatrix], ...]
    runs: Mapping[str, tuple[int, ...]]
    trajectories: Mapping[str, Trajectory]
    seeds: tuple[OverSeeds, ...]

    @classmethod
    def of(cls, analyses: Sequence[SpectralAnalysis], labels: Sequence[str] | None = None) -> Checkpoints:
        """What follows from these analyses; by default they are called by their files' names.

        Raises InputError if ``analyses`` is a single one, or if labels are more or fewer.
        """
        if isinstance(analyses, SpectralAnalysis):
            raise InputError("analyses must be a sequence; put a single one in a list")
        names = checkpoint_names(analyses) if labels is None else tuple(labels)
        if len(names) != len(analyses):
            raise InputError(f"{len(names)} labels were given for {len(analyses)} checkpoints; give one for each")
        runs = runs_of(analyses) if analyses else {}
        followed = {run: [analyses[i] for i in members] for run, members in runs.items()}
        return cls(
            names,
            tuple(analyses),
            tuple(split_bulk(analysis) for analysis in analyses),
            tuple(_similarities(analysis) for analysis in analyses),
            runs,
            {
                run: follow_checkpoints(each, labels=[names[i] for i in runs[run]])
                for run, each in followed.items()
                if len(each) > 1
                and len({one.full.n for one in each}) == 1
                and all(len(one.full.largest) for one in each)
            },
            tuple(over_seeds(analyses)) if analyses else (),
        )


def _similarities(analysis: SpectralAnalysis) -> dict[str, SimilarityMatrix]:
    matrices = (similarity_matrix(analysis, metric=metric) for metric in USUAL) if analysis.layers else ()
    return {matrix.metric: matrix for matrix in matrices}
