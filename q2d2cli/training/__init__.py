"""Training: configuration, data, losses, discriminators, the loop and export."""
