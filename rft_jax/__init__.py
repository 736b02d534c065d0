"""RFT and Online RFT for language models in JAX (DeepSeekMath, arXiv 2402.03300, section 5.2)."""

__version__ = "0.1.0"
