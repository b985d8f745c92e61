"""MixDQ: quantised inference of few-step text-to-image models (arXiv 2405.17873)."""
