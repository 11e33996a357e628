"""Neural networks: configuration, encoders, decoder and the codec model that joins them."""
