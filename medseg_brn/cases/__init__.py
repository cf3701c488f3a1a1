"""Patients and datasets: their layouts, checks, folds, fingerprint and deterministic preparation. No torch."""
