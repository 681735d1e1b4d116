"""Cross-validation: a model for each fold, masks of cases it has not seen, and what they score."""
