"""From an unknown dataset to one complete experiment: rules with reasons, predicted and measured costs."""
