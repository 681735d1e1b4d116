"""What a trained network is and how it is kept: checkpoints, models, the device they run on."""
