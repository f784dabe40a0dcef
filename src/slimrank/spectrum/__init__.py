"""Spectra: the singular values of every unit in a metric, and the loss at every rank."""
