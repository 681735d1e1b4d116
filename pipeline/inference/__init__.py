"""A network and a case in, probabilities on the case's own grid out: windows, flips, ensembles."""
