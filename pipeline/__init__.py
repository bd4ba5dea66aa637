"""An autoencoder on MNIST whose stages DVC runs and whose runs MLflow records."""
