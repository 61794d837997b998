"""What is measured: class moments, collapse metrics, spectra, the Fisher."""
