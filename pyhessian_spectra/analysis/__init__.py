"""What a spectrum means: decompositions, comparisons and the one recipe that runs an analysis."""
