"""How the bundled model is made: tokenizer, autoencoder, text encoder, denoiser, one module each."""
