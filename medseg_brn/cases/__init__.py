"""Patients and datasets: layouts, checks, folds, fingerprint, deterministic preparation. No torch."""
