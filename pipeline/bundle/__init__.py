"""From a trained model to a MONAI bundle that is proven equal to it."""
