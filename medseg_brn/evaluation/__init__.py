"""How good a segmentation is: overlap and surface metrics, per case and per cohort."""
