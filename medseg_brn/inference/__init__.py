"""What a trained model does with a volume: windows, precision, cohorts of cases."""
